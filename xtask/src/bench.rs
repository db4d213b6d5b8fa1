//! `cargo xtask bench`: measurements, side by side in one run.
use crate::Failure;
use clap::Args;
/// Options of `bench`.
#[derive(Args, Debug)]
pub struct Options {}
/// Runs one.
pub async fn run(_options: &Options) -> Result<(), Failure> {
    Err("not yet".into())
}
