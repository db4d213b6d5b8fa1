//! The statements of a command. There are two, so that a command costs two round trips: a look-up, and a commit that
//! writes record, key, state, read model and outbox rows at once. A statement is as atomic as a transaction.

use std::sync::LazyLock;

/// What is known before the work: the command that had the key first, and the basket.
/// $1 principal, $2 command type, $3 key, $4 basket.
pub const LOOK_UP: &str = "
    SELECT k.command_id, c.fingerprint, c.result,
           b.id, b.owner, b.buyer_id, b.status, b.lines, b.payment_method, b.version, b.created_at, b.updated_at
    FROM (VALUES (0)) AS always
    LEFT JOIN idempotency_key k ON k.principal = $1 AND k.command_type = $2 AND k.key = $3
    LEFT JOIN command_log c ON c.id = k.command_id AND c.received_at = k.received_at
    LEFT JOIN basket b ON b.id = $4";

/// Locks a basket until the transaction ends. $1 basket.
pub const LOCK: &str = "SELECT FROM basket WHERE id = $1 FOR NO KEY UPDATE";

/// Whether the command may be executed. The advisory lock lasts as long as the transaction: a twin that is under way
/// is seen without waiting for it.
const LANE: &str = "
    lane AS MATERIALIZED (
        SELECT $9::text IS NULL
                   OR pg_try_advisory_xact_lock(hashtextextended(concat_ws(chr(31), $4, $3, $9), 0)) AS free,
               EXISTS (SELECT FROM idempotency_key
                       WHERE principal = $4 AND command_type = $3 AND key = $9) AS known)";

/// Nothing changes: a refusal, or a wish for what already is.
const NOTHING: &str = "changed AS (SELECT FROM lane WHERE free AND NOT known)";

const INSERT: &str = "
    changed AS (
        INSERT INTO basket (id, owner, buyer_id, status, lines, payment_method, version, created_at, updated_at)
        SELECT $12, $4, $19, $15, $16, $17, $13, $18, $18 FROM lane WHERE free AND NOT known
        RETURNING id, owner, buyer_id, status)";

/// The version is the one before the command's events, or somebody was faster and nothing is written.
const UPDATE: &str = "
    changed AS (
        UPDATE basket
        SET status = $15, lines = $16, payment_method = $17, version = $13, updated_at = $18
        FROM lane WHERE free AND NOT known AND id = $12 AND version = $19
        RETURNING id, owner, buyer_id, status)";

/// Every part takes its rows from `changed`: no change, no traces. The key comes last, so that it is never claimed in
/// vain; should a twin have claimed it meanwhile, the violation undoes the whole statement.
const RECORD: &str = "
    logged AS (
        INSERT INTO command_log (id, received_at, completed_at, command_type, principal, correlation_id, traceparent,
                                 payload, fingerprint, idempotency_key, outcome, result, basket_id, basket_version,
                                 event_ids)
        SELECT $1, $2, clock_timestamp(), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14 FROM changed),
    claimed AS (
        INSERT INTO idempotency_key (principal, command_type, key, command_id, received_at)
        SELECT $4, $3, $9, $1, $2 FROM changed WHERE $9 IS NOT NULL)
    SELECT free, EXISTS (SELECT FROM changed) AS done FROM lane";

const PROJECT: &str = "
    projected AS (
        INSERT INTO basket_view (id, owner, buyer_id, status, view)
        SELECT id, owner, buyer_id, status, $20 FROM changed WHERE $20::jsonb IS NOT NULL
        ON CONFLICT (id) DO UPDATE SET status = excluded.status, view = excluded.view)";

/// Parameters before those of the outbox rows.
const OUTBOX_FROM: usize = 21;

/// Records a command that changes nothing. Parameters $1 to $14: see [`RECORD`].
pub static COMMIT_NOTHING: LazyLock<String> = LazyLock::new(|| format!("WITH {LANE}, {NOTHING}, {RECORD}"));
/// Commits a command that makes a basket. $15 status, $16 lines, $17 payment method, $18 now, $19 buyer, $20 view, and
/// the outbox rows.
pub static COMMIT_INSERT: LazyLock<String> = LazyLock::new(|| commit(INSERT));
/// Commits a command that changes a basket. As [`COMMIT_INSERT`], but $19 is the version before.
pub static COMMIT_UPDATE: LazyLock<String> = LazyLock::new(|| commit(UPDATE));

fn commit(change: &str) -> String {
    let publish = outbox::append_statement(OUTBOX_FROM, "WHERE EXISTS (SELECT FROM changed)");
    format!("WITH {LANE}, {change}, {PROJECT}, published AS ({publish}), {RECORD}")
}
