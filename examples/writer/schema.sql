-- The table of the service. The outbox table beside it is migrations/outbox/0001_outbox.sql.

CREATE TABLE account (
    account_id text   PRIMARY KEY,
    balance    bigint NOT NULL CHECK (balance > 0),
    version    bigint NOT NULL      -- counts the events of the account from 1, so that a consumer notices a missing one
);
