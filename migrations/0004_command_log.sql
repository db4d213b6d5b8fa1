-- Commands: the audit log, and the keys that make a repeated command harmless. Both rows are written in the
-- transaction of the command's work, so there is never one without the other.

-- Who wished what, when, and what came of it. Completed exactly once; partitioned, so that old months can be dropped.
CREATE TABLE command_log (
    id             uuid        NOT NULL,
    received_at    timestamptz NOT NULL,
    command_type   text        NOT NULL,
    principal      text        NOT NULL,
    correlation_id text        NOT NULL,
    traceparent    text,
    payload        jsonb       NOT NULL,
    fingerprint    text        NOT NULL,
    completed_at   timestamptz,
    outcome        text        CHECK (outcome IN ('accepted', 'refused')),
    result         jsonb,
    event_ids      uuid[],
    PRIMARY KEY (id, received_at),
    CONSTRAINT command_log_completed_as_a_whole CHECK (
        num_nulls(completed_at, outcome, result, event_ids) IN (0, 4)),
    CONSTRAINT command_log_no_events_of_a_refusal CHECK (outcome <> 'refused' OR event_ids = '{}')
) PARTITION BY RANGE (received_at);

CREATE TABLE command_log_default PARTITION OF command_log DEFAULT;

-- Uniqueness cannot span the partitions of the log, so it has a table of its own, expired in batches.
CREATE TABLE idempotency_key (
    principal    text        NOT NULL,
    command_type text        NOT NULL,
    key          text        NOT NULL,
    fingerprint  text        NOT NULL,
    command_id   uuid        NOT NULL,
    received_at  timestamptz NOT NULL,
    PRIMARY KEY (principal, command_type, key)
);

CREATE INDEX idempotency_key_by_age ON idempotency_key (received_at);

-- A completed command stays as it is: the log is evidence.
CREATE FUNCTION command_log_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'command % is completed and cannot be changed', OLD.id USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER command_log_is_final BEFORE UPDATE ON command_log
    FOR EACH ROW WHEN (OLD.completed_at IS NOT NULL) EXECUTE FUNCTION command_log_is_final();
