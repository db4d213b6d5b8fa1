"""Applies each event once: inbox row and effect in one transaction, the offset after it. Its supervisor restarts it."""

import json
import os
import re
import secrets
import signal
import uuid

import psycopg
from confluent_kafka import Consumer, KafkaException
from psycopg.types.json import Jsonb


def continued(traceparent: str) -> str:
    valid = re.fullmatch(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})", traceparent)
    trace_id, flags = valid.groups() if valid else (secrets.token_hex(16), "00")
    return f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"


def apply(database: psycopg.Connection, headers: dict[str, str], value: bytes | None) -> None:
    event_id, event = uuid.UUID(headers["ce_id"]), json.loads(value or b"")
    # Other types count as versions of the account, too: without them, gaps would be reported.
    amount = int(event["amount"]) if headers["ce_type"] == "account.deposited.v1" else 0
    if amount < 0:
        raise ValueError("the amount is negative")
    with database.transaction():
        inbox = "INSERT INTO inbox (event_id, traceparent) VALUES (%s, %s) ON CONFLICT DO NOTHING"
        if database.execute(inbox, (event_id, continued(headers.get("traceparent", "")))).rowcount == 0:
            return
        effect = "SELECT apply_deposit(%s, %s, %s)::text"
        (missing,) = database.execute(effect, (event["account_id"], amount, int(event["version"]))).fetchone()
        if missing is None:
            raise ValueError("the version arrived before, with another event id")
    print("applied", event_id, "missing versions:", missing, flush=True)


def process(database: psycopg.Connection, message) -> None:
    headers = {name: (text or b"").decode(errors="replace").replace("\0", "") for name, text in message.headers() or []}
    try:
        apply(database, headers, message.value())
    except (LookupError, TypeError, ValueError, psycopg.DataError, psycopg.IntegrityError) as poison:
        record = (message.topic(), message.partition(), message.offset(), repr(poison), Jsonb(headers))
        reject = 'INSERT INTO rejected (topic, partition, "offset", reason, headers, key, value) VALUES (%s, %s, %s, %s, %s, %s, %s)'
        database.execute(reject + " ON CONFLICT DO NOTHING", (*record, message.key(), message.value()))


settings = {"bootstrap.servers": os.environ["KAFKA_BOOTSTRAP_SERVERS"], "group.id": os.environ["KAFKA_GROUP"]}
settings |= {"auto.offset.reset": "earliest", "enable.auto.offset.store": False, "session.timeout.ms": 10_000}
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
consumer = Consumer(settings)
consumer.subscribe([os.environ["KAFKA_TOPIC"]])
with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
    while not stopping:
        if (message := consumer.poll(1.0)) is None or message.error():
            continue
        process(connection, message)
        try:
            consumer.store_offsets(message)
        except KafkaException:
            pass  # A rebalance took the partition away. The inbox of its new owner has the event.
consumer.close()  # Commits the stored offsets and leaves the group.
