-- Commands: the audit log, and the keys that make a repeated command harmless. Both rows are written in the
-- transaction of the command's work, so there is never one without the other.

-- Who wished what, when, and what came of it. Written once, when the work is done: there is no half of a command.
-- Partitioned by month, so that old ones can be dropped.
CREATE TABLE command_log (
    id              uuid        NOT NULL,            -- UUIDv7: sorts by time
    received_at     timestamptz NOT NULL,
    completed_at    timestamptz NOT NULL,
    command_type    text        NOT NULL,
    principal       text        NOT NULL,
    idempotency_key text,
    correlation_id  text        NOT NULL,
    traceparent     text,
    payload         jsonb       NOT NULL,
    fingerprint     text        NOT NULL,            -- tells another wish under the same key
    outcome         text        NOT NULL CHECK (outcome IN ('accepted', 'refused')),
    result          jsonb       NOT NULL,            -- what a repeated command is answered
    basket_id       uuid,
    basket_version  bigint,
    event_ids       uuid[]      NOT NULL,
    PRIMARY KEY (id, received_at),
    CONSTRAINT command_log_result_of_its_outcome CHECK (result ? outcome),
    CONSTRAINT command_log_no_events_of_a_refusal CHECK (outcome = 'accepted' OR event_ids = '{}'),
    CONSTRAINT command_log_version_of_a_change CHECK ((outcome = 'accepted') = (basket_version IS NOT NULL))
) PARTITION BY RANGE (received_at);

CREATE TABLE command_log_default PARTITION OF command_log DEFAULT;

-- One principal's commands, newest first. Everybody's are read by the primary key.
CREATE INDEX command_log_by_principal ON command_log (principal, id DESC);

-- Uniqueness cannot span the partitions of the log, so it has a table of its own, expired in batches.
CREATE TABLE idempotency_key (
    principal    text        NOT NULL,
    command_type text        NOT NULL,
    key          text        NOT NULL,
    command_id   uuid        NOT NULL,
    received_at  timestamptz NOT NULL,
    PRIMARY KEY (principal, command_type, key)
);

CREATE INDEX idempotency_key_by_age ON idempotency_key (received_at);

-- The log is evidence: what is written stays as it is until its whole month is dropped.
CREATE FUNCTION command_log_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'command % is in the log and cannot be changed', OLD.id USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER command_log_is_final BEFORE UPDATE OR DELETE ON command_log
    FOR EACH ROW EXECUTE FUNCTION command_log_is_final();

-- Makes the partitions of this month and the next, and drops those of months that ended longer than `keep` ago;
-- NULL keeps everything. Returns how many it made and dropped. It runs as the owner, so the service's role needs no
-- right to create tables. A lock it does not get within 200 ms it leaves to the next call.
CREATE FUNCTION command_log_maintain(keep interval) RETURNS integer
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET lock_timeout = '200ms'
    SET timezone = 'UTC'
AS $$
DECLARE
    month   timestamptz;
    old     record;
    changed integer := 0;
BEGIN
    IF keep < interval '7 days' THEN
        RAISE EXCEPTION 'command_log_maintain: keep must be 7 days or more, not %', keep
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOREACH month IN ARRAY ARRAY[date_trunc('month', now()), date_trunc('month', now()) + interval '1 month'] LOOP
        CONTINUE WHEN to_regclass('command_log_m' || to_char(month, 'YYYYMM')) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE TABLE %I PARTITION OF command_log FOR VALUES FROM (%L) TO (%L)',
                           'command_log_m' || to_char(month, 'YYYYMM'), month, month + interval '1 month');
            changed := changed + 1;
        EXCEPTION
            WHEN check_violation THEN
                RAISE WARNING 'command_log_default holds rows of %; that month gets no partition of its own', month::date;
        END;
    END LOOP;
    FOR old IN
        SELECT c.relname, to_date(right(c.relname, 6), 'YYYYMM') + interval '1 month' AS ended
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'command_log'::regclass AND c.relname ~ '^command_log_m[0-9]{6}$'
    LOOP
        IF old.ended < now() - keep THEN
            EXECUTE format('DROP TABLE %I', old.relname);
            changed := changed + 1;
        END IF;
    END LOOP;
    RETURN changed;
EXCEPTION
    WHEN lock_not_available THEN
        RETURN changed;
END
$$;

-- See outbox_maintain: names must not be resolved through the caller's search_path.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION command_log_maintain(interval) SET search_path = %I, pg_temp', current_schema());
END
$$;
REVOKE ALL ON FUNCTION command_log_maintain(interval) FROM PUBLIC;

SELECT command_log_maintain(NULL);
