//! What several rounds say together. A machine that other programs use too gives outliers, so the median is compared and never the mean.

use serde::{Deserialize, Serialize};

/// The smallest, the middle and the largest of some figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Middle; between two figures, their mean.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// `None` without a figure.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (min, max) = (*figures.first()?, *figures.last()?);
        let (below, above) = (*figures.get((figures.len() - 1) / 2)?, *figures.get(figures.len() / 2)?);
        Some(Spread { min, median: f64::midpoint(below, above), max })
    }
}

/// How many times the median of `other` the median of `this` is; `None` if one has no figures or `other` is zero.
pub fn ratio(this: Option<Spread>, other: Option<Spread>) -> Option<f64> {
    let (this, other) = (this?.median, other?.median);
    (other != 0.0).then(|| this / other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_figure_or_the_mean_of_the_two_in_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(Spread::of([9.0, 1.0, 2.0, 4.0]), Some(Spread { min: 1.0, median: 3.0, max: 9.0 }));
        assert_eq!(Spread::of([7.0]), Some(Spread { min: 7.0, median: 7.0, max: 7.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_ratio_is_of_medians_and_needs_both() {
        let (this, other) = (Spread::of([10.0, 30.0, 1000.0]), Spread::of([10.0, 10.0, 1.0]));
        assert_eq!(ratio(this, other), Some(3.0));
        assert_eq!(ratio(this, None), None);
        assert_eq!(ratio(None, other), None);
        assert_eq!(ratio(this, Spread::of([0.0])), None);
    }
}
