\set n random(1, {baskets})
\set r random(1, 9000000000000000)
SELECT k.command_id, k.fingerprint, k.result, b.id, b.owner, b.buyer_id, b.status, b.lines, b.payment_method, b.version, b.created_at, b.updated_at FROM (VALUES (0)) AS always LEFT JOIN idempotency_key k ON k.principal = 'developer' AND k.command_type = 'change_quantity' AND k.key = :r::text LEFT JOIN basket b ON b.id = lpad(to_hex(:n::bigint), 32, '0')::uuid \gset
WITH claim AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock(hashtextextended(
               concat_ws(chr(31), 'developer', 'change_quantity', :r::text), 0))
           AND NOT EXISTS (SELECT FROM idempotency_key
                           WHERE principal = 'developer' AND command_type = 'change_quantity'
                             AND key = :r::text) AS granted),
changed AS (
    UPDATE basket
    SET status = 'open', lines = '{lines}', payment_method = NULL, version = :version::bigint + 1, updated_at = now()
    FROM claim
    WHERE granted AND id = lpad(to_hex(:n::bigint), 32, '0')::uuid AND version = :version::bigint
    RETURNING id, owner, buyer_id, status, version),
projected AS (
    INSERT INTO basket_view (id, owner, buyer_id, status, view)
    SELECT id, owner, buyer_id, status, '{view}'::jsonb FROM changed
    ON CONFLICT (id) DO UPDATE SET status = excluded.status, view = excluded.view),
appended AS (
    INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, headers, traceparent, tracestate)
    SELECT md5(:r::text)::uuid, 'basket', id::text, 'basket.item_quantity_changed.v1', '{event}'::jsonb,
           '{headers}'::jsonb, NULL, NULL
    FROM changed),
logged AS (
    INSERT INTO command_log
        (id, received_at, completed_at, command_type, principal, correlation_id, traceparent, payload,
         idempotency_key, outcome, refusal, basket_id, basket_version, event_ids)
    SELECT md5(:r::text)::uuid, now(), clock_timestamp(), 'change_quantity', 'developer', :r::text, NULL,
           '{payload}'::jsonb, :r::text, 'accepted', NULL, id, version,
           ARRAY[md5(:r::text)::uuid]
    FROM changed),
claimed AS (
    INSERT INTO idempotency_key (principal, command_type, key, command_id, received_at, fingerprint, result)
    SELECT 'developer', 'change_quantity', :r::text, md5(:r::text)::uuid, now(), repeat('0', 64),
           '{"accepted": {view}}'::jsonb
    FROM changed)
SELECT EXISTS (SELECT FROM changed) AS done;
