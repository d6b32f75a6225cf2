//! Figures beside their goals, in 80 columns.

use std::fmt;

/// The figures of one part, in order.
#[derive(Debug, Default)]
pub(crate) struct Table {
    lines: Vec<String>,
}

/// The first two lines.
pub(crate) fn heading() -> String {
    let words = row("figure", "measured", "against", "ratio", "goal", "");
    format!("\n{words}\n{}", "-".repeat(80))
}

fn row(figure: &str, measured: &str, against: &str, ratio: &str, goal: &str, verdict: &str) -> String {
    let line = format!("{figure:<32}{measured:>11}{against:>11}{ratio:>8}{goal:>10}  {verdict}");
    line.trim_end().to_owned()
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

impl Table {
    /// A time against another that was measured in turns with it; both in nanoseconds.
    pub(crate) fn ratio(&mut self, figure: &str, measured: u64, against: u64, goal: f64) {
        let ratio = measured as f64 / against as f64;
        let goal_text = format!("<={goal:.1}x");
        let (measured, against) = (millis(measured), millis(against));
        self.lines.push(row(figure, &measured, &against, &format!("{ratio:.2}x"), &goal_text, verdict(ratio <= goal)));
    }

    /// As `ratio`, where there is no goal.
    pub(crate) fn plain_ratio(&mut self, figure: &str, measured: u64, against: u64) {
        let ratio = format!("{:.2}x", measured as f64 / against as f64);
        self.lines.push(row(figure, &millis(measured), &millis(against), &ratio, "", ""));
    }

    /// Pairs that were measured in turns, as the medians of each and of how many per cent the first is above the second.
    /// A goal is a difference in per cent that it must stay below, either way.
    pub(crate) fn difference(&mut self, figure: &str, measured: &[f64], against: &[f64], goal: Option<f64>) {
        let above = median(&above(measured, against));
        let goal_text = goal.map_or(String::new(), |goal| format!("<{goal:.0} %"));
        let verdict = goal.map_or("", |goal| verdict(above.abs() < goal));
        let (measured, against) = (format!("{:.1}", median(measured)), format!("{:.1}", median(against)));
        self.lines.push(row(figure, &measured, &against, &format!("{above:+.2}%"), &goal_text, verdict));
    }

    /// A figure with nothing to hold against it.
    pub(crate) fn plain(&mut self, figure: &str, measured: &str) {
        self.lines.push(row(figure, measured, "", "", "", ""));
    }

    /// A count that should not be beyond `goal`.
    pub(crate) fn count(&mut self, figure: &str, measured: u64, goal: u64) {
        self.lines.push(row(figure, &measured.to_string(), "", "", &format!("<={goal}"), verdict(measured <= goal)));
    }

    /// An amount of memory in bytes.
    pub(crate) fn bytes(&mut self, figure: &str, measured: u64, goal: u64) {
        let goal_text = format!("<={}", megabytes(goal));
        self.lines.push(row(figure, &megabytes(measured), "", "", &goal_text, verdict(measured <= goal)));
    }

    /// An amount of memory in bytes against another.
    pub(crate) fn memory(&mut self, figure: &str, measured: u64, against: u64, goal: Option<f64>) {
        let ratio = measured as f64 / against as f64;
        let goal_text = goal.map_or(String::new(), |goal| format!("<={goal:.1}x"));
        let verdict = goal.map_or("", |goal| verdict(ratio <= goal));
        let (measured, against) = (megabytes(measured), megabytes(against));
        self.lines.push(row(figure, &measured, &against, &format!("{ratio:.2}x"), &goal_text, verdict));
    }

    /// A time in nanoseconds.
    pub(crate) fn time(&mut self, figure: &str, measured: u64, goal: u64) {
        let goal_text = format!("<={:.1} s", goal as f64 / 1e9);
        self.lines.push(row(figure, &millis(measured), "", "", &goal_text, verdict(measured <= goal)));
    }

    /// Amounts a second that were measured in turns with others, as medians; the goal is a share in per cent.
    pub(crate) fn speed(&mut self, figure: &str, measured: &[f64], against: &[f64], goal: Option<f64>) {
        let (measured, against) = (median(measured), median(against));
        let share = measured * 100.0 / against;
        let goal_text = goal.map_or(String::new(), |goal| format!(">={goal:.0} %"));
        let (measured, against) = (format!("{measured:.0}/s"), format!("{against:.0}/s"));
        let met = goal.map_or("", |goal| verdict(share >= goal));
        self.lines.push(row(figure, &measured, &against, &format!("{share:.0} %"), &goal_text, met));
    }

    /// A line that explains the one above.
    pub(crate) fn note(&mut self, text: &str) {
        self.lines.push(format!("    {text}"));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

fn millis(nanoseconds: u64) -> String {
    format!("{:.3} ms", nanoseconds as f64 / 1e6)
}

/// Decimal megabytes: where kB of 1024 bytes could be meant as well, this is the stricter.
fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

/// By how many per cent the first of each pair is above the second.
fn above(measured: &[f64], against: &[f64]) -> Vec<f64> {
    measured.iter().zip(against).map(|(measured, against)| (measured / against - 1.0) * 100.0).collect()
}

/// Between which per cent the median of such pairs is, 19 times of 20, whatever their distribution.
pub(crate) fn spread_of_median(measured: &[f64], against: &[f64]) -> String {
    let mut above = above(measured, against);
    above.sort_unstable_by(f64::total_cmp);
    let count = above.len() as f64;
    // Of so many the number below the median is binomial.
    let rank = ((count - 1.96 * count.sqrt()) / 2.0).max(0.0) as usize;
    let (Some(low), Some(high)) = (above.get(rank), above.iter().nth_back(rank)) else { return "no pairs".to_owned() };
    format!("{low:+.1} to {high:+.1} %")
}

/// The middle of `values`, of two the upper.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value that `percent` of `values` do not exceed; 50 is the median.
pub(crate) fn percentile(values: &mut [u64], percent: usize) -> u64 {
    values.sort_unstable();
    let place = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(place).copied().unwrap_or(0)
}
