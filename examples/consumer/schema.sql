-- Tables of a consumer whose events take effect once.

-- One row for each event that took effect. Keep rows longer than the topic keeps records (retention.ms), because a
-- consumer group that is reset reads all of them again. An hourly job: DELETE FROM inbox WHERE applied_at < now() - interval '8 days'.
CREATE TABLE inbox (
    event_id    uuid        PRIMARY KEY,            -- header ce_id
    traceparent text        NOT NULL,               -- the span in which the event took effect, in the trace of its writer
    applied_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX inbox_applied_at ON inbox (applied_at);

-- What has been deposited. `missing` has the versions below `version` that have not arrived.
-- For an alert: SELECT account_id, missing FROM account_total WHERE missing <> '{}'
CREATE TABLE account_total (
    account_id text           PRIMARY KEY,
    total      bigint         NOT NULL,
    version    bigint         NOT NULL,
    missing    int8multirange NOT NULL
);

-- The effect of an event. Returns the missing versions of the account, and NULL if this version arrived before.
-- Versions between the last one and this one become missing. One that arrives late, such as a dead letter that was sent
-- again, is missing no longer.
CREATE FUNCTION apply_deposit(account text, amount bigint, event_version bigint) RETURNS int8multirange
    LANGUAGE sql
AS $$
    INSERT INTO account_total AS a (account_id, total, version, missing)
    VALUES (account, amount, event_version, int8multirange(int8range(1, event_version)))
    ON CONFLICT (account_id) DO UPDATE SET
        total   = a.total + excluded.total,
        version = greatest(a.version, excluded.version),
        missing = a.missing - int8multirange(int8range(event_version, event_version, '[]'))
                + int8multirange(int8range(a.version + 1, greatest(event_version, a.version + 1)))
    WHERE excluded.version > a.version OR a.missing @> excluded.version
    RETURNING missing
$$;

-- Records that can never take effect. Alert on their number: each is a fault of a writer or of this consumer.
CREATE TABLE rejected (
    topic       text        NOT NULL,
    partition   integer     NOT NULL,
    "offset"    bigint      NOT NULL,
    reason      text        NOT NULL,
    headers     jsonb       NOT NULL,
    key         bytea,
    value       bytea,
    rejected_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, partition, "offset")
);
