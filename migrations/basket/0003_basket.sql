-- The basket service's own tables: the state commands change, and the read model queries see.

-- State. A command that changes a basket locks its row, which gives the basket's events their order.
CREATE TABLE basket (
    id             uuid        PRIMARY KEY,         -- UUIDv7: sorts by time of creation
    owner          text        NOT NULL,            -- the principal that created it; no other sees it
    buyer_id       text        NOT NULL,
    status         text        NOT NULL CHECK (status IN ('open', 'checked_out', 'abandoned')),
    lines          jsonb       NOT NULL,            -- in the order they were put in
    payment_method text,
    version        bigint      NOT NULL CHECK (version >= 1),
    created_at     timestamptz NOT NULL,
    updated_at     timestamptz NOT NULL,
    CONSTRAINT basket_paid_when_checked_out CHECK ((status = 'checked_out') = (payment_method IS NOT NULL))
);

-- Finds baskets that were not changed for long, oldest first. Not on updated_at: an index on a column that every change
-- writes would make every change write the index, too.
CREATE INDEX basket_open ON basket (id) WHERE status = 'open';

-- Read model: what a reader is shown, computed when the basket changes, in the same transaction. It can be made
-- again from the state at any time: basket-api rebuild-read-model.
CREATE TABLE basket_view (
    id       uuid  PRIMARY KEY,
    owner    text  NOT NULL,
    buyer_id text  NOT NULL,
    status   text  NOT NULL,
    view     jsonb NOT NULL
);

-- Newest first, one index for each combination of filters: an owner may be a shop with millions of baskets, and a buyer
-- the one that a shop uses for all its guests.
CREATE INDEX basket_view_by_owner ON basket_view (owner, id DESC);
CREATE INDEX basket_view_by_buyer ON basket_view (owner, buyer_id, id DESC);
CREATE INDEX basket_view_by_status ON basket_view (owner, status, id DESC);
CREATE INDEX basket_view_by_buyer_and_status ON basket_view (owner, buyer_id, status, id DESC);
