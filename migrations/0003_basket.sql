-- The basket service's own tables: the state commands change, and the read model queries see.

-- State. A row is locked while a command works on its basket, which gives the basket's events their order.
CREATE TABLE basket (
    id             uuid        PRIMARY KEY,
    buyer_id       text        NOT NULL,
    status         text        NOT NULL CHECK (status IN ('open', 'checked_out')),
    lines          jsonb       NOT NULL,            -- in the order they were put in
    payment_method text,
    version        bigint      NOT NULL CHECK (version >= 1),
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    CONSTRAINT basket_paid_when_checked_out CHECK ((status = 'checked_out') = (payment_method IS NOT NULL))
);

-- Read model: what a reader is shown, computed when the basket changes, in the same transaction.
CREATE TABLE basket_view (
    id       uuid   PRIMARY KEY REFERENCES basket (id) ON DELETE CASCADE,
    buyer_id text   NOT NULL,
    view     jsonb  NOT NULL
);

-- Ids are UUIDv7 and sort by time: newest first for one buyer.
CREATE INDEX basket_view_by_buyer ON basket_view (buyer_id, id DESC);
