//! The bounds of a basket. They hold for changes: a basket that was stored under other bounds is still read.

/// Most lines of a basket.
pub const MAX_LINES: usize = 200;
/// Most pieces of one article. A shop that sells more at once does not use a basket.
pub const MAX_QUANTITY: u32 = 1_000;
/// Highest price of one piece, in minor units: a hundred million of a currency with cents.
pub const MAX_PRICE: i64 = 10_000_000_000;
/// Largest integer that a double-precision number holds exactly.
pub const MAX_EXACT: i64 = (1 << 53) - 1;

// The fullest basket at the highest price has an exact total, so adding up needs no check.
const _: () = assert!(MAX_PRICE <= MAX_EXACT / MAX_QUANTITY as i64 / MAX_LINES as i64);
