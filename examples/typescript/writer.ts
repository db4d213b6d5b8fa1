// Deposits an amount: state and event in one transaction.
//
//   DATABASE_URL=postgres://... TRACEPARENT=00-... node writer.js ann 500
import { randomUUID } from "node:crypto";
import { Client } from "pg";

async function deposit(database: Client, account: string, amount: number, traceparent?: string): Promise<void> {
  await database.query("BEGIN");
  try {
    // The state first: this statement locks the row, so events of one account are committed in the order of their versions.
    const { rows } = await database.query(
      `INSERT INTO account AS a (account_id, balance, version) VALUES ($1, $2, 1)
       ON CONFLICT (account_id) DO UPDATE SET balance = a.balance + excluded.balance, version = a.version + 1
       RETURNING version`,
      [account, amount],
    );
    // PostgreSQL's bigint is a string here. Versions stay far below 2^53.
    const payload = { account_id: account, version: Number(rows[0].version), amount };
    await database.query(
      `INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, traceparent)
       VALUES ($1, 'account', $2, 'account.deposited.v1', $3, $4)`,
      [randomUUID(), account, payload, traceparent], // Better a UUIDv7, from a library.
    );
    await database.query("COMMIT");
  } catch (error) {
    await database.query("ROLLBACK");
    throw error;
  }
}

async function main(): Promise<void> {
  const database = new Client({ connectionString: process.env.DATABASE_URL });
  await database.connect();
  try {
    await deposit(database, process.argv[2], Number(process.argv[3]), process.env.TRACEPARENT);
  } finally {
    await database.end();
  }
}

void main();
