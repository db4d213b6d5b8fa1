INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
VALUES (gen_random_uuid(), 'order', 'order-1', 'order.placed.v1', '{"total": 1780}');
