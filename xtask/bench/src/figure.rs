//! One row of the table.

/// What the numbers of a row are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Milliseconds,
    Megabytes,
    GigabitsPerSecond,
    Count,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Megabytes => "MB",
            Self::GigabitsPerSecond => "Gbit/s",
            Self::Count => "",
        }
    }

    /// Whether the largest sample is the best one.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::GigabitsPerSecond | Self::Count)
    }
}

/// Which of the samples a limit speaks about, in percent of the samples below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quantile(pub(crate) u8);

/// For what must hold for each of them.
pub(crate) const LOWEST: Quantile = Quantile(0);
pub(crate) const MEDIAN: Quantile = Quantile(50);
pub(crate) const P95: Quantile = Quantile(95);
pub(crate) const P99: Quantile = Quantile(99);

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
    /// At most this much above the same quantile of the host's baseline.
    OverHost(f64),
    /// At most this many times the same quantile of the host's baseline.
    TimesHost(f64),
    /// At least the same quantile of the other program of this name.
    NotBelow(&'static str),
}

impl Limit {
    /// Whether what is below the bound breaks it.
    pub(crate) fn is_floor(self) -> bool {
        matches!(self, Self::AtLeast(_) | Self::NotBelow(_))
    }
}

/// The same thing done in or by another program that does what a VM does.
#[derive(Debug)]
pub(crate) struct Other {
    pub(crate) name: &'static str,
    /// None where the program is not to be had.
    pub(crate) samples: Vec<f64>,
}

#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) samples: Vec<f64>,
    /// The same thing done on the host without a VM.
    pub(crate) host: Vec<f64>,
    pub(crate) others: Vec<Other>,
    pub(crate) limits: Vec<(Quantile, Limit)>,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, unit: Unit, samples: Vec<f64>) -> Self {
        Self { name: name.into(), unit, samples, host: Vec::new(), others: Vec::new(), limits: Vec::new() }
    }

    pub(crate) fn milliseconds(name: impl Into<String>, samples: Vec<f64>) -> Self {
        Self::new(name, Unit::Milliseconds, samples)
    }

    pub(crate) fn limit(mut self, quantile: Quantile, limit: Limit) -> Self {
        self.limits.push((quantile, limit));
        self
    }

    pub(crate) fn host(mut self, samples: Vec<f64>) -> Self {
        self.host = samples;
        self
    }

    pub(crate) fn other(mut self, name: &'static str, samples: Vec<f64>) -> Self {
        self.others.push(Other { name, samples });
        self
    }

    /// The number a limit comes to in this run, which may depend on the host's baseline.
    pub(crate) fn bound(&self, quantile: Quantile, limit: Limit) -> f64 {
        match limit {
            Limit::AtMost(bound) | Limit::AtLeast(bound) => bound,
            Limit::OverHost(extra) => at(&self.host, quantile) + extra,
            Limit::TimesHost(factor) => at(&self.host, quantile) * factor,
            Limit::NotBelow(name) => {
                let other = self.others.iter().find(|other| other.name == name);
                at(other.map_or(&[], |other| &other.samples), quantile)
            }
        }
    }

    /// A row without samples, or without the baseline that its limit needs, is over: it was not shown to be fine.
    pub(crate) fn is_over(&self) -> bool {
        self.limits.iter().any(|(quantile, limit)| {
            let (value, bound) = (at(&self.samples, *quantile), self.bound(*quantile, *limit));
            let beyond = if limit.is_floor() { value < bound } else { value > bound };
            value.is_nan() || bound.is_nan() || beyond
        })
    }
}

/// The smallest sample that at least `quantile` percent of the samples do not exceed; NaN without samples.
pub(crate) fn at(samples: &[f64], quantile: Quantile) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * usize::from(quantile.0)).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(count: u32) -> Vec<f64> {
        (1..=count).rev().map(f64::from).collect()
    }

    #[test]
    fn quantiles_are_samples_at_their_rank() {
        assert_eq!(at(&samples(100), MEDIAN), 50.0);
        assert_eq!(at(&samples(100), P99), 99.0);
        assert_eq!(at(&samples(3), MEDIAN), 2.0);
        assert_eq!(at(&samples(1), P99), 1.0);
        assert!(at(&[], MEDIAN).is_nan());
    }

    #[test]
    fn a_figure_is_over_when_one_of_its_limits_is_broken() {
        let figure = |most: f64| {
            Figure::milliseconds("x", samples(100))
                .limit(MEDIAN, Limit::AtMost(most))
                .limit(P99, Limit::AtMost(1000.0))
        };
        assert!(!figure(50.0).is_over());
        assert!(figure(49.9).is_over());
    }

    #[test]
    fn limits_against_the_host_follow_its_baseline() {
        let figure = |limit| Figure::milliseconds("x", vec![3.0]).host(vec![2.0]).limit(MEDIAN, limit);
        assert!(!figure(Limit::OverHost(1.0)).is_over());
        assert!(figure(Limit::OverHost(0.9)).is_over());
        assert!(!figure(Limit::TimesHost(1.5)).is_over());
        assert!(figure(Limit::TimesHost(1.4)).is_over());
    }

    #[test]
    fn a_limit_against_another_program_follows_what_that_reached() {
        let figure = |ours: f64, theirs: Vec<f64>| {
            Figure::new("x", Unit::GigabitsPerSecond, vec![ours])
                .other("bystander", vec![9.0])
                .other("rival", theirs)
                .limit(MEDIAN, Limit::NotBelow("rival"))
        };
        assert!(!figure(4.0, vec![4.0]).is_over());
        assert!(figure(3.9, vec![4.0]).is_over());
        assert!(figure(3.9, vec![]).is_over());
    }

    #[test]
    fn what_was_not_measured_is_not_fine() {
        assert!(Figure::milliseconds("x", vec![]).limit(MEDIAN, Limit::AtMost(1.0)).is_over());
        assert!(Figure::milliseconds("x", vec![1.0]).limit(MEDIAN, Limit::OverHost(1.0)).is_over());
        assert!(Figure::new("x", Unit::Count, vec![999.0]).limit(MEDIAN, Limit::AtLeast(1000.0)).is_over());
    }
}
