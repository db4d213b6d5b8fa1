//! Another build of the relay, measured in the same run: this machine at another time is another machine.

use std::path::{Path, PathBuf};

use clap::Args;

/// Which build to compare with.
#[derive(Args, Debug)]
pub struct Baseline {
    /// Folder with an `outbox-relay` of another commit, built with --release, to be measured in turns with this one.
    #[arg(long, value_name = "FOLDER")]
    against: Option<PathBuf>,
}

/// A build being measured.
pub struct Build {
    /// What the table calls it.
    pub name: &'static str,
    /// Where its programs are.
    pub programs: PathBuf,
}

const THIS: &str = "this";
const OTHER: &str = "other";

impl Baseline {
    /// What to measure in round `number`; who goes first alternates.
    pub fn builds(&self, programs: &Path, number: usize) -> Vec<Build> {
        let mut builds = vec![Build { name: THIS, programs: programs.to_owned() }];
        builds.extend(self.against.clone().map(|programs| Build { name: OTHER, programs }));
        if number.is_multiple_of(2) {
            builds.reverse();
        }
        builds
    }

    /// One line for the table: the median of this build's figures over that of the other's.
    pub fn ratio(&self, what: &str, figures: impl Iterator<Item = (&'static str, f64)> + Clone) -> String {
        if self.against.is_none() {
            return String::new();
        }
        let of = |name| median(figures.clone().filter(|figure| figure.0 == name).map(|figure| figure.1));
        format!("  {what}, median of this to median of other: {:.3}\n", of(THIS) / of(OTHER))
    }
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let at = |index: usize| figures.get(index).copied().unwrap_or(f64::NAN);
    (at(figures.len().saturating_sub(1) / 2) + at(figures.len() / 2)) / 2.0
}
