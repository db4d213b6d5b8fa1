-- The outbox table: the one table an integration event passes through on its way to Kafka.
-- A service inserts its event in the transaction that changes its state; the relay reads the
-- committed row from the logical replication stream. Columns and reasons: docs/OUTBOX.md.
--
-- Append-only: no UPDATE, no DELETE. Space is given back by dropping whole partitions.

CREATE TABLE outbox (
    id            uuid        NOT NULL,             -- event id, UUIDv7 from the writer; consumers deduplicate on it
    aggregatetype text        NOT NULL,             -- routes to a topic
    aggregateid   text        NOT NULL,             -- the Kafka key: events of one aggregate keep their order
    type          text        NOT NULL,             -- event type with version, such as basket.checked_out.v1
    payload       jsonb,                            -- the event
    headers       jsonb,                            -- extra Kafka headers: a flat object of strings
    traceparent   text,                             -- W3C trace context at the time of writing
    tracestate    text,
    occurred_at   timestamptz NOT NULL DEFAULT clock_timestamp(),   -- never written by a client: it is the partition key
    xid           xid8        NOT NULL DEFAULT pg_current_xact_id(),
    -- CACHE 1: a session that took a block of numbers would insert them out of order.
    seq           bigint      GENERATED ALWAYS AS IDENTITY (CACHE 1),
    CONSTRAINT outbox_headers_object CHECK (headers IS NULL OR jsonb_typeof(headers) = 'object')
) PARTITION BY RANGE (occurred_at);

CREATE INDEX outbox_seq ON outbox (seq);

-- The backstop: a write must never fail because maintenance is late.
CREATE TABLE outbox_default PARTITION OF outbox DEFAULT;

-- Makes daily partitions (UTC) from today to now + ahead, and returns how many it made. The relay calls it;
-- it runs as the table's owner, so the relay's role needs EXECUTE and no right to create tables.
-- `keep` is how long rows stay; partitions are not dropped yet.
--
-- Creating a partition locks the parent against writers, so it waits for that lock 200 ms at most and
-- leaves the rest to the next call. A day that already has rows in the DEFAULT partition cannot get one
-- of its own: it stays in DEFAULT, with a warning.
CREATE FUNCTION outbox_maintain(keep interval, ahead interval)
    RETURNS integer
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET lock_timeout = '200ms'
    SET timezone = 'UTC'
AS $$
DECLARE
    from_day timestamptz := date_trunc('day', now());
    made     integer := 0;
BEGIN
    IF ahead < interval '0' OR ahead > interval '366 days' THEN
        RAISE EXCEPTION 'outbox_maintain: ahead must be between 0 and 366 days, not %', ahead
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WHILE from_day <= now() + ahead LOOP
        IF to_regclass(format('outbox_p%s', to_char(from_day, 'YYYYMMDD'))) IS NULL THEN
            BEGIN
                EXECUTE format(
                    'CREATE TABLE %I PARTITION OF outbox FOR VALUES FROM (%L) TO (%L)',
                    'outbox_p' || to_char(from_day, 'YYYYMMDD'), from_day, from_day + interval '1 day');
                made := made + 1;
            EXCEPTION
                WHEN lock_not_available THEN
                    RETURN made;
                WHEN check_violation THEN
                    RAISE WARNING 'outbox_default holds rows of %; that day gets no partition of its own', from_day::date;
            END;
        END IF;
        from_day := from_day + interval '1 day';
    END LOOP;
    RETURN made;
END
$$;

-- A SECURITY DEFINER function must not resolve names through the caller's search_path. pg_catalog comes first by itself;
-- pg_temp, where anybody may create, has to be last.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION outbox_maintain(interval, interval) SET search_path = %I, pg_temp',
                   current_schema());
END
$$;
REVOKE ALL ON FUNCTION outbox_maintain(interval, interval) FROM PUBLIC;

SELECT outbox_maintain(interval '72 hours', interval '3 days');
