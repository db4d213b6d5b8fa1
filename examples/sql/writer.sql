-- Deposits an amount: state and event in one transaction.
--
--   psql -d shop -v ON_ERROR_STOP=1 -v account=ann -v amount=500 \
--        -v traceparent=00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 -f writer.sql

BEGIN;

-- The state first: this statement locks the row, so events of one account are committed in the order of their versions.
INSERT INTO account AS a (account_id, balance, version) VALUES (:'account', :amount, 1)
ON CONFLICT (account_id) DO UPDATE SET balance = a.balance + excluded.balance, version = a.version + 1;

-- occurred_at, xid and seq are the database's. On PostgreSQL 18 and newer: uuidv7().
INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload, traceparent)
SELECT gen_random_uuid(), 'account', account_id, 'account.deposited.v1',
       jsonb_build_object('account_id', account_id, 'version', version, 'amount', :amount::bigint), :'traceparent'
FROM account WHERE account_id = :'account';

COMMIT;
