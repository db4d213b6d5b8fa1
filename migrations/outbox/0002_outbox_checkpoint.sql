-- One row per relay: what is known to be in Kafka. It lives in the source database and nowhere else, so that it
-- is as old or as new as the rows it speaks about, whatever is restored. The relay sends PostgreSQL no
-- confirmation that is ahead of this row.
--
-- A row is also a claim: outbox_maintain drops nothing that its snapshot does not show as delivered. The claim of a relay that
-- no longer exists remains until its row, and its slot, are deleted.

CREATE TABLE outbox_checkpoint (
    relay                   text        PRIMARY KEY,      -- the relay's configured name
    slot                    name        NOT NULL,
    system_identifier       bigint      NOT NULL,         -- of the cluster the LSNs below belong to
    timeline                integer     NOT NULL,
    confirmed_lsn           pg_lsn,                       -- every commit before it is in Kafka; NULL until the slot exists
    -- The first start with rows in the table (source.start: Table). Empty before and after.
    start_phase             text        CHECK (start_phase IN ('creating', 'copying')),
    start_lsn               pg_lsn,                       -- where the slot begins
    start_snapshot          pg_snapshot,                  -- what it shows is not in the stream, and delivered first
    start_cursor            bigint,                       -- of those rows, the ones up to this seq are in Kafka
    -- Transactions visible in it have all their rows in Kafka. The default is the empty one: no transaction is.
    delivered_snapshot      pg_snapshot NOT NULL DEFAULT '1:1:',
    -- As kafka_offsets; no row of a transaction invisible in delivered_snapshot lies before them.
    snapshot_offsets        jsonb       NOT NULL DEFAULT '{}',
    mapping_version         integer     NOT NULL DEFAULT 1,
    -- Where rows go: routing rule, limits, topic -> partitions; and what it was for rows that may be replayed.
    mapping                 jsonb       NOT NULL DEFAULT '{}',
    publication_fingerprint text,                         -- the publication as it was; NULL takes it as it is
    -- topic -> partition -> the offset a search for our records starts at, and our last record before it.
    kafka_offsets           jsonb       NOT NULL DEFAULT '{}',
    updated_at              timestamptz NOT NULL DEFAULT clock_timestamp()
);
