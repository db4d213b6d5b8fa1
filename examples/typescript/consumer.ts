// Applies each event once: inbox row and effect in one transaction, the offset after it. Its supervisor restarts it.
import { randomBytes } from "node:crypto";
import { Kafka, type EachMessagePayload, type KafkaMessage } from "kafkajs";
import { Client } from "pg";

const group = process.env.KAFKA_GROUP!;
const brokers = process.env.KAFKA_BOOTSTRAP_SERVERS!.split(",");
const consumer = new Kafka({ brokers }).consumer({ groupId: group, sessionTimeout: 10_000 });
const database = new Client({ connectionString: process.env.DATABASE_URL });

/** A new span in the trace of a W3C traceparent, or in a new trace. OpenTelemetry's propagator does the same. */
function continued(traceparent = ""): string {
  const valid = /^00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})$/.exec(traceparent);
  const [trace, flags] = valid ? [valid[1], valid[2]] : [randomBytes(16).toString("hex"), "00"];
  return `00-${trace}-${randomBytes(8).toString("hex")}-${flags}`;
}

function headers(message: KafkaMessage): Record<string, string> {
  const text = (value: unknown) => String(value ?? "").replaceAll("\0", "");
  return Object.fromEntries(Object.entries(message.headers ?? {}).map(([name, value]) => [name, text(value)]));
}

async function apply(message: KafkaMessage): Promise<void> {
  const { ce_id: id, ce_type: type, traceparent } = headers(message);
  const event = JSON.parse(message.value?.toString() ?? "");
  // Other types count as versions of the account, too: without them, gaps would be reported.
  const amount = type === "account.deposited.v1" ? event.amount : 0;
  if (!id || !Number.isInteger(event.version) || !Number.isInteger(amount) || amount < 0) throw new SyntaxError("no event");
  const inbox = "INSERT INTO inbox (event_id, traceparent) VALUES ($1, $2) ON CONFLICT DO NOTHING";
  if ((await database.query(inbox, [id, continued(traceparent)])).rowCount === 0) return;
  const effect = "SELECT apply_deposit($1, $2, $3)::text AS missing";
  const [{ missing }] = (await database.query(effect, [event.account_id, amount, event.version])).rows;
  if (missing === null) throw new SyntaxError("the version arrived before, with another event id");
  console.log("applied", id, "missing versions:", missing);
}

async function process_({ topic, partition, message }: EachMessagePayload): Promise<void> {
  try {
    await database.query("BEGIN");
    await apply(message);
    await database.query("COMMIT");
  } catch (error: any) {
    await database.query("ROLLBACK");
    // SQLSTATE classes 22 and 23: values that a column or constraint refuses.
    if (!(error instanceof SyntaxError) && !/^2[23]/.test(error.code)) process.exit(1);
    const reject = `INSERT INTO rejected (topic, partition, "offset", reason, headers, key, value)
                    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`;
    const record = [topic, partition, message.offset, String(error), headers(message), message.key, message.value];
    await database.query(reject, record);
  }
  await consumer.commitOffsets([{ topic, partition, offset: String(BigInt(message.offset) + 1n) }]);
}

async function main(): Promise<void> {
  await database.connect();
  await consumer.connect();
  await consumer.subscribe({ topic: process.env.KAFKA_TOPIC!, fromBeginning: true });
  process.on("SIGTERM", () => void consumer.disconnect().then(() => process.exit(0)));
  await consumer.run({ autoCommit: false, eachMessage: process_ });
}

void main();
