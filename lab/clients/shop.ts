// A basket from its creation through checkout, with the generated client and its types only.

import {
    BasketsApi, CommandsApi, Configuration, PaymentMethod, ResponseError, Status,
} from "./generated/index";

declare const process: { env: Record<string, string | undefined>; exit(code: number): never };

function expect(holds: boolean, what: string): asserts holds {
    if (!holds) throw new Error(what);
}

async function shop(): Promise<void> {
    const configuration = new Configuration({ basePath: process.env.API, accessToken: process.env.TOKEN });
    const baskets = new BasketsApi(configuration);
    const commands = new CommandsApi(configuration);
    const key = () => crypto.randomUUID();

    const created = await baskets.createBasketRaw({ idempotencyKey: key(), newBasket: { buyerId: "buyer-17" } });
    const { id, version } = await created.value();
    // Relative to the address of the request, as RFC 9110 allows.
    const location = new URL(created.raw.headers.get("Location") ?? "", `${process.env.API}/v1/baskets`);
    expect(location.pathname === `/v1/baskets/${id}`, "Location");

    const tea = { sku: "tea-250", name: "Green tea, 250 g", quantity: 2, unitPrice: { amount: 350, currency: "EUR" } };
    const added = await baskets.addItem({ id, idempotencyKey: key(), ifMatch: `"${version}"`, newItem: tea });
    expect(added.total?.amount === 700, "the total");
    const changed = await baskets.changeQuantity({ id, sku: tea.sku, newQuantity: { quantity: 3 } });
    expect(changed.lines[0]?.quantity === 3, "the quantity");

    const listed = await baskets.listBaskets({ status: Status.Open, limit: 10 });
    expect(listed.baskets.some((basket) => basket.id === id), "the basket is in the list");

    const stale = await baskets
        .removeItem({ id, sku: tea.sku, ifMatch: `"${version}"` })
        .catch((error: unknown) => error);
    expect(stale instanceof ResponseError && stale.response.status === 412, "a stale version is refused");

    const paid = { id, idempotencyKey: key(), payment: { paymentMethod: PaymentMethod.Invoice } };
    const ordered = await baskets.checkOut(paid);
    expect(ordered.status === Status.CheckedOut && ordered.paymentMethod === PaymentMethod.Invoice, "the status");
    const again = await baskets.checkOutRaw(paid);
    expect(again.raw.headers.get("Idempotent-Replayed") === "true", "a repetition is replayed");

    const command = await commands.getCommand({ id: again.raw.headers.get("Command-Id")! });
    expect(command.outcome === "accepted" && command.basketId === id, "the command is in the log");
    console.log("a basket went from its creation through checkout");
}

shop().catch((error: unknown) => {
    console.error(error);
    process.exit(1);
});
