-- Commands: the audit log, and the keys that make a repeated command harmless. Both rows are written in the
-- transaction of the command's work, so there is never one without the other.

-- Who issued which command, when, and with which outcome. Written once, when the work is done: there is no half of a
-- command. Partitioned by month, so that old ones can be dropped.
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
    outcome         text        NOT NULL CHECK (outcome IN ('accepted', 'refused')),
    refusal         text,                            -- why it was refused
    basket_id       uuid,
    basket_version  bigint,
    event_ids       uuid[]      NOT NULL,
    PRIMARY KEY (id, received_at),
    CONSTRAINT command_log_reason_of_a_refusal CHECK ((outcome = 'refused') = (refusal IS NOT NULL)),
    CONSTRAINT command_log_no_events_of_a_refusal CHECK (outcome = 'accepted' OR event_ids = '{}'),
    CONSTRAINT command_log_version_of_a_change CHECK ((outcome = 'accepted') = (basket_version IS NOT NULL))
) PARTITION BY RANGE (received_at);

CREATE TABLE command_log_default PARTITION OF command_log DEFAULT;

-- Newest first, by each filter, of one principal and of all. Times are bounds on the id, and all commands are read by the
-- primary key. Several filters at once use the one that leaves the fewest rows.
CREATE INDEX command_log_by_principal ON command_log (principal, id DESC);
CREATE INDEX command_log_by_principal_and_type ON command_log (principal, command_type, id DESC);
CREATE INDEX command_log_by_principal_and_outcome ON command_log (principal, outcome, id DESC);
CREATE INDEX command_log_by_type ON command_log (command_type, id DESC);
CREATE INDEX command_log_by_outcome ON command_log (outcome, id DESC);

-- Uniqueness cannot span the partitions of the log, so keys have their own table, expired in batches. What a repeated
-- command is answered expires with its key: it is a whole basket, and no evidence.
CREATE TABLE idempotency_key (
    principal    text        NOT NULL,
    command_type text        NOT NULL,
    key          text        NOT NULL,
    command_id   uuid        NOT NULL,
    received_at  timestamptz NOT NULL,
    fingerprint  text        NOT NULL,            -- tells another request under the same key
    result       jsonb       NOT NULL,            -- what a repeated command is answered
    PRIMARY KEY (principal, command_type, key)
);

CREATE INDEX idempotency_key_by_age ON idempotency_key (received_at);

-- The log is evidence: what is written stays as it is until its whole month is dropped. Rows in the default partition have no
-- month that could be dropped; command_log_maintain deletes them, and sets what allows it.
CREATE FUNCTION command_log_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION 'the log of commands cannot be truncated; command_log_maintain drops what is old'
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF TG_OP = 'DELETE' AND TG_TABLE_NAME = 'command_log_default'
       AND current_setting('command_log.expires', true) = 'on' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'command % is in the log and cannot be changed', OLD.id USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER command_log_is_final BEFORE UPDATE OR DELETE ON command_log
    FOR EACH ROW EXECUTE FUNCTION command_log_is_final();

-- A trigger for statements is not inherited: each partition has its own.
CREATE TRIGGER command_log_not_truncated BEFORE TRUNCATE ON command_log
    FOR EACH STATEMENT EXECUTE FUNCTION command_log_is_final();
CREATE TRIGGER command_log_not_truncated BEFORE TRUNCATE ON command_log_default
    FOR EACH STATEMENT EXECUTE FUNCTION command_log_is_final();

-- Creates the partitions of this month and the next, drops those of months that ended longer than `keep` ago, and deletes
-- rows of the default partition that are as old, a batch in each call; a `keep` of NULL keeps everything. It runs as the
-- owner, so the role of the service needs no right to create or drop tables. Call it again while it did something.
--
-- Each step is rolled back separately if it does not get its locks within 200 ms, and is left to the next call.
CREATE FUNCTION command_log_maintain(
    keep        interval,
    OUT created integer,    -- partitions created
    OUT dropped integer,    -- partitions dropped
    OUT deleted integer,    -- rows deleted from the default partition
    OUT held    text        -- why something that is due was not done; NULL if nothing was left
)
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET lock_timeout = '200ms'
    SET timezone = 'UTC'
AS $$
DECLARE
    batch      CONSTANT integer := 10000;
    month      timestamptz;
    month_name text;
    old        record;
BEGIN
    created := 0;
    dropped := 0;
    deleted := 0;
    IF keep < interval '7 days' THEN
        RAISE EXCEPTION 'command_log_maintain: keep must be 7 days or more, not %', keep
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    -- One call at a time. This lock conflicts with another call's and with that of DDL only.
    BEGIN
        LOCK TABLE ONLY command_log IN SHARE UPDATE EXCLUSIVE MODE;
    EXCEPTION WHEN lock_not_available THEN
        held := 'another session maintains or alters the table command_log';
        RETURN;
    END;

    FOREACH month IN ARRAY ARRAY[date_trunc('month', now()), date_trunc('month', now()) + interval '1 month'] LOOP
        month_name := 'command_log_m' || to_char(month, 'YYYYMM');
        CONTINUE WHEN to_regclass(month_name) IS NOT NULL;
        BEGIN
            EXECUTE format('CREATE TABLE %I PARTITION OF command_log FOR VALUES FROM (%L) TO (%L)',
                           month_name, month, month + interval '1 month');
            EXECUTE format('CREATE TRIGGER command_log_not_truncated BEFORE TRUNCATE ON %I
                            FOR EACH STATEMENT EXECUTE FUNCTION command_log_is_final()', month_name);
            created := created + 1;
        EXCEPTION
            WHEN check_violation THEN
                held := concat_ws('; ', held, format('%s gets no partition, because command_log_default holds rows of it', month::date));
            WHEN lock_not_available THEN
                held := concat_ws('; ', held, format('%s was not created, because another session held a lock on command_log', month_name));
        END;
    END LOOP;

    FOR old IN
        SELECT c.relname AS name, to_date(right(c.relname, 6), 'YYYYMM') + interval '1 month' AS ended
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'command_log'::regclass AND c.relname ~ '^command_log_m[0-9]{6}$'
        ORDER BY c.relname
    LOOP
        CONTINUE WHEN keep IS NULL OR old.ended >= now() - keep;
        BEGIN
            -- Its own lock first: DROP would take that of command_log, and every command would wait while it waits for the
            -- reader of an old month.
            EXECUTE format('LOCK TABLE ONLY %I IN ACCESS EXCLUSIVE MODE', old.name);
            EXECUTE format('DROP TABLE %I', old.name);
            dropped := dropped + 1;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            held := concat_ws('; ', held, format('%s stays, because another session held a lock on it or on command_log', old.name));
        END;
    END LOOP;

    IF keep IS NOT NULL THEN
        -- Not in the head of this function: only a superuser may attach a custom setting to one.
        PERFORM set_config('command_log.expires', 'on', true);
        DELETE FROM ONLY command_log_default WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM ONLY command_log_default WHERE received_at < now() - keep LIMIT batch));
        GET DIAGNOSTICS deleted = ROW_COUNT;
        PERFORM set_config('command_log.expires', 'off', true);
    END IF;
END
$$;

-- See outbox_maintain: names must not be resolved through the search_path of the caller.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION command_log_maintain(interval) SET search_path = %I, pg_temp', current_schema());
END
$$;
REVOKE ALL ON FUNCTION command_log_maintain(interval) FROM PUBLIC;

SELECT command_log_maintain(NULL);
