-- The outbox table: the one table an integration event passes through on its way to Kafka.
-- A service inserts its event in the transaction that changes its state; the relay reads the
-- committed row from the logical replication stream. Columns and reasons: docs/OUTBOX.md.
--
-- Append-only: no UPDATE, no DELETE. outbox_maintain gives space back, by dropping whole partitions.

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

-- The partitions, and when the range of each ends; NULL for DEFAULT and for a range without end.
CREATE VIEW outbox_partitions AS
SELECT c.oid::regclass AS partition,
       substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''([^'']+)''\)')::timestamptz AS ends
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'outbox'::regclass AND c.relkind = 'r';

-- Makes daily partitions (UTC) from today to now + ahead, and gives back the space of rows older than `keep` that
-- every relay has delivered: whole partitions by DROP, rows of DEFAULT by DELETE. The relays call it, again and again
-- while it did something; it runs as the table's owner, so their role needs EXECUTE and no right on tables.
--
-- What a relay has delivered is what is visible in the snapshot of its row in outbox_checkpoint; what goes is visible in
-- all of them. Nothing goes while no relay is registered, or while a logical slot exists that no registered relay
-- owns: who reads through it may want the rows. The clock decides what is due, never what is delivered.
--
-- Writers are never kept waiting for longer than lock_timeout: what does not get its lock is left to a later call.
-- A call makes partitions, or deletes a batch, or drops one partition, because it keeps its locks until it ends.
CREATE FUNCTION outbox_maintain(
    keep        interval,
    ahead       interval,
    OUT made    integer,    -- partitions made
    OUT dropped integer,    -- partitions dropped
    OUT deleted integer,    -- rows deleted from DEFAULT
    OUT held    text        -- why something that is due was not done; NULL if nothing was left
)
    LANGUAGE plpgsql
    SECURITY DEFINER
    SET lock_timeout = '200ms'
    SET timezone = 'UTC'
    SET datestyle = 'ISO'
AS $$
DECLARE
    batch        CONSTANT integer := 10000;     -- keeps a call short, and its WAL in small pieces
    from_day     timestamptz := date_trunc('day', now());
    day_name     text;
    due_rows     boolean;
    due          regclass[];
    old          regclass;
    foreign_slot text;
    behind       text;
    known        xid8;
BEGIN
    made := 0;
    dropped := 0;
    deleted := 0;
    IF ahead < interval '0' OR ahead > interval '366 days' THEN
        RAISE EXCEPTION 'outbox_maintain: ahead must be between 0 and 366 days, not %', ahead
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF keep < interval '0' THEN
        RAISE EXCEPTION 'outbox_maintain: keep must not be negative, but is %', keep
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Each statement has to see what was committed while the one before it waited for a lock.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'outbox_maintain needs isolation level read committed'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;

    -- One call at a time. This lock conflicts only with another call, and with DDL.
    BEGIN
        LOCK TABLE ONLY outbox IN SHARE UPDATE EXCLUSIVE MODE;
    EXCEPTION WHEN lock_not_available THEN
        held := 'another session maintains or alters the table outbox';
        RETURN;
    END;

    WHILE from_day <= now() + ahead LOOP
        day_name := 'outbox_p' || to_char(from_day, 'YYYYMMDD');
        IF to_regclass(day_name) IS NOT NULL THEN
            NULL;
        ELSIF EXISTS (SELECT FROM ONLY outbox_default
                      WHERE occurred_at >= from_day AND occurred_at < from_day + interval '1 day') THEN
            -- Rows are never moved: moving one would send it a second time.
            held := concat_ws('; ', held, format('%s gets no partition, because outbox_default holds rows of it', from_day::date));
        ELSE
            BEGIN
                EXECUTE format('CREATE TABLE %I PARTITION OF outbox FOR VALUES FROM (%L) TO (%L)',
                               day_name, from_day, from_day + interval '1 day');
                made := made + 1;
            EXCEPTION
                WHEN lock_not_available THEN
                    held := concat_ws('; ', held, format('%s was not made, because writers held a lock on outbox', day_name));
                    RETURN;
                WHEN check_violation THEN
                    held := concat_ws('; ', held, format('%s gets no partition, because outbox_default holds rows of it', from_day::date));
                WHEN invalid_object_definition THEN
                    NULL;   -- A partition that another client created covers the day.
            END;
        END IF;
        from_day := from_day + interval '1 day';
    END LOOP;
    IF made > 0 THEN
        RETURN;
    END IF;

    due := ARRAY(SELECT partition FROM outbox_partitions WHERE ends <= now() - keep ORDER BY ends);
    due_rows := EXISTS (SELECT FROM ONLY outbox_default WHERE occurred_at < now() - keep);
    IF NOT due_rows AND due = '{}' THEN
        RETURN;
    END IF;
    IF to_regclass('outbox_checkpoint') IS NULL THEN
        held := concat_ws('; ', held, 'nothing is dropped, because there is no table outbox_checkpoint');
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM outbox_checkpoint) THEN
        held := concat_ws('; ', held, 'nothing is dropped, because no relay is registered in outbox_checkpoint');
        RETURN;
    END IF;
    SELECT format('slot %s (plugin %s)', slot_name, plugin) INTO foreign_slot
    FROM pg_replication_slots
    WHERE database = current_database() AND slot_name NOT IN (SELECT slot FROM outbox_checkpoint)
    ORDER BY slot_name LIMIT 1;
    IF FOUND THEN
        held := concat_ws('; ', held, format('nothing is dropped, because %s belongs to no relay in outbox_checkpoint', foreign_slot));
        RETURN;
    END IF;

    IF due_rows THEN
        BEGIN
            -- A relay that registers waits until this is done, so that nothing is deleted after its registration.
            LOCK TABLE outbox_checkpoint IN SHARE MODE;
            DELETE FROM ONLY outbox_default WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM ONLY outbox_default o
                WHERE occurred_at < now() - keep
                  AND (SELECT bool_and(pg_visible_in_snapshot(o.xid, delivered_snapshot)) FROM outbox_checkpoint)
                LIMIT batch));
            GET DIAGNOSTICS deleted = ROW_COUNT;
            IF deleted > 0 THEN
                RETURN;
            END IF;
            RAISE no_data_found;    -- Gives the lock back.
        EXCEPTION
            WHEN no_data_found THEN
                held := concat_ws('; ', held, 'rows of outbox_default stay, because a relay has not delivered them');
            WHEN lock_not_available THEN
                held := concat_ws('; ', held, 'rows of outbox_default stay, because another session held a lock on them or on outbox_checkpoint');
            WHEN object_not_in_prerequisite_state THEN
                held := concat_ws('; ', held, 'rows of outbox_default stay, because a publication publishes deletes of outbox');
        END;
    END IF;

    FOREACH old IN ARRAY due LOOP
        BEGIN
            -- No writer of the partition is active after this, and only writers of old rows wait for it.
            EXECUTE format('LOCK TABLE ONLY %s IN SHARE MODE', old);
            known := (SELECT min(pg_snapshot_xmax(delivered_snapshot)) FROM outbox_checkpoint);
            EXECUTE format('SELECT relay FROM outbox_checkpoint c
                            WHERE EXISTS (SELECT FROM ONLY %s WHERE xid >= pg_snapshot_xmin(c.delivered_snapshot)
                                          AND NOT pg_visible_in_snapshot(xid, c.delivered_snapshot))
                            ORDER BY relay LIMIT 1', old) INTO behind;
            IF behind IS NOT NULL THEN
                held := concat_ws('; ', held, format('%s stays, because relay %s has not delivered all of it', old, behind));
                RETURN;
            END IF;
            -- DROP would take this lock, and writers wait from here on: nothing that takes time may follow.
            LOCK TABLE ONLY outbox IN ACCESS EXCLUSIVE MODE;
            LOCK TABLE outbox_checkpoint IN SHARE MODE;
            -- Snapshots only grow. One that knows less than those that were looked at is of a new row.
            IF (SELECT min(pg_snapshot_xmax(delivered_snapshot)) >= known FROM outbox_checkpoint) IS NOT TRUE THEN
                held := concat_ws('; ', held, 'nothing is dropped, because a relay was registered or deregistered just now');
                RETURN;
            END IF;
            EXECUTE format('DROP TABLE %s', old);
            dropped := 1;
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            held := concat_ws('; ', held, format('%s stays, because another session held a lock on it, on outbox, or on outbox_checkpoint', old));
        END;
    END LOOP;
END
$$;

-- For metrics: how many rows are in DEFAULT, counted up to 10,000, and how many seconds ago the range of the oldest
-- partition ended (0 if it has not).
CREATE FUNCTION outbox_partition_state(OUT default_rows bigint, OUT oldest_age double precision)
    LANGUAGE plpgsql
    STABLE
    SECURITY DEFINER
AS $$
BEGIN
    default_rows := (SELECT count(*) FROM (SELECT FROM ONLY outbox_default LIMIT 10000) bounded);
    oldest_age := (SELECT greatest(0, coalesce(extract(epoch FROM now() - min(ends)), 0)) FROM outbox_partitions);
END
$$;

-- A SECURITY DEFINER function must not resolve names through the caller's search_path. pg_catalog comes first implicitly;
-- pg_temp, where every role may create, has to be last.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION outbox_maintain(interval, interval) SET search_path = %I, pg_temp',
                   current_schema());
    EXECUTE format('ALTER FUNCTION outbox_partition_state() SET search_path = %I, pg_temp', current_schema());
END
$$;
REVOKE ALL ON FUNCTION outbox_maintain(interval, interval), outbox_partition_state() FROM PUBLIC;

SELECT outbox_maintain(interval '72 hours', interval '3 days');
