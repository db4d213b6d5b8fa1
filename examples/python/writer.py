"""Deposits an amount: state and event in one transaction.

DATABASE_URL=postgres://... TRACEPARENT=00-... python3 writer.py ann 500
"""

import os
import sys
import uuid

import psycopg
from psycopg.types.json import Jsonb


def deposit(connection: psycopg.Connection, account: str, amount: int, traceparent: str | None) -> None:
    with connection.transaction():
        # The state first: this statement locks the row, so events of one account are committed in the order of their versions.
        (version,) = connection.execute(
            """INSERT INTO account AS a (account_id, balance, version) VALUES (%s, %s, 1)
               ON CONFLICT (account_id) DO UPDATE SET balance = a.balance + excluded.balance, version = a.version + 1
               RETURNING version""",
            (account, amount),
        ).fetchone()
        payload = {"account_id": account, "version": version, "amount": amount}
        # From Python 3.14 on: uuid.uuid7().
        connection.execute(
            """INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, traceparent)
               VALUES (%s, 'account', %s, 'account.deposited.v1', %s, %s)""",
            (uuid.uuid4(), account, Jsonb(payload), traceparent),
        )


if __name__ == "__main__":
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as database:
        deposit(database, sys.argv[1], int(sys.argv[2]), os.environ.get("TRACEPARENT"))
