//! The table for people and the JSON for programs.

use crate::Failure;
use crate::figure::{Figure, Limit, MEDIAN, Other, P99, Quantile, Unit, at};
use serde_json::json;

const HEADINGS: [&str; 9] = ["figure", "n", "best", "median", "p99", "limit", "host", "others", ""];

pub(crate) fn table(figures: &[Figure]) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(figures.iter().map(row));
    let widths: Vec<usize> = (0..HEADINGS.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut table = String::from("\n");
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        table.push_str(cells.join("  ").trim_end());
        table.push('\n');
    }
    table
}

fn row(figure: &Figure) -> [String; 9] {
    let verdict = match (figure.limits.is_empty(), figure.is_over()) {
        (true, _) => "",
        (false, false) => "ok",
        (false, true) => "OVER",
    };
    // The other end of the samples is where the good ones are, if more is better.
    let (best, worst) =
        if figure.unit.more_is_better() { (Quantile(100), Quantile(1)) } else { (Quantile(0), P99) };
    let limits: Vec<String> =
        figure.limits.iter().map(|(quantile, limit)| show_limit(figure, *quantile, *limit)).collect();
    [
        figure.name.clone(),
        figure.samples.len().to_string(),
        number(at(&figure.samples, best), figure.unit),
        number(at(&figure.samples, MEDIAN), figure.unit),
        number(at(&figure.samples, worst), figure.unit),
        limits.join(", "),
        number(at(&figure.host, MEDIAN), figure.unit),
        show_others(figure),
        verdict.to_owned(),
    ]
}

fn show_others(figure: &Figure) -> String {
    let show = |other: &Other| match at(&other.samples, MEDIAN) {
        median if median.is_nan() => format!("no {}", other.name),
        median => format!("{} {}", other.name, number(median, figure.unit)),
    };
    figure.others.iter().map(show).collect::<Vec<_>>().join(", ")
}

fn show_limit(figure: &Figure, quantile: Quantile, limit: Limit) -> String {
    let bound = number(figure.bound(quantile, limit), figure.unit);
    let why = match limit {
        Limit::AtMost(_) => String::new(),
        Limit::AtLeast(_) => return format!("at least {bound}"),
        Limit::NotBelow(name) if bound.is_empty() => return format!("at least {name}, not measured"),
        Limit::NotBelow(name) => return format!("at least {bound} ({name})"),
        Limit::OverHost(extra) => format!(" (host + {extra})"),
        Limit::TimesHost(factor) => format!(" (host x {factor})"),
    };
    if quantile == MEDIAN { format!("{bound}{why}") } else { format!("p{} {bound}{why}", quantile.0) }
}

/// Three digits that mean something; nothing for what was not measured.
fn number(value: f64, unit: Unit) -> String {
    let digits = match value.abs() {
        _ if value.is_nan() => return String::new(),
        _ if unit == Unit::Count => 0,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", unit.name()).trim_end().to_owned()
}

/// One line while the bench runs.
pub(crate) fn brief(figure: &Figure) -> String {
    let verdict = if figure.is_over() { " OVER" } else { "" };
    format!("{}: {}{verdict}", figure.name, number(at(&figure.samples, MEDIAN), figure.unit))
}

/// Everything, every sample included.
pub(crate) fn json(figures: &[Figure]) -> Result<String, Failure> {
    let figures: Vec<_> = figures
        .iter()
        .map(|figure| {
            let limits: Vec<_> = figure
                .limits
                .iter()
                .map(|(quantile, limit)| {
                    let kind = if limit.is_floor() { "at_least" } else { "at_most" };
                    json!({"percent": quantile.0, kind: figure.bound(*quantile, *limit)})
                })
                .collect();
            let others: serde_json::Map<_, _> =
                figure.others.iter().map(|other| (other.name.to_owned(), json!(other.samples))).collect();
            json!({
                "name": figure.name, "unit": figure.unit.name(), "limits": limits, "over": figure.is_over(),
                "samples": figure.samples, "host": figure.host, "others": others,
            })
        })
        .collect();
    let uname = rustix::system::uname();
    let machine = json!({
        "kernel": uname.release().to_string_lossy(), "architecture": uname.machine().to_string_lossy(),
        "cpus": std::thread::available_parallelism().map_or(1, usize::from),
        "root": rustix::process::geteuid().is_root(),
    });
    Ok(serde_json::to_string_pretty(&json!({"machine": machine, "figures": figures}))? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        Figure::milliseconds("create", vec![1.0, 2.0, 3.0])
            .host(vec![1.5])
            .limit(MEDIAN, Limit::OverHost(1.0))
            .limit(P99, Limit::AtMost(15.0))
    }

    #[test]
    fn the_table_shows_value_limit_and_verdict() {
        let table = table(&[figure()]);
        let line = table.lines().last().unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "create 3 1.00 ms 2.00 ms 3.00 ms 2.50 ms (host + 1), p99 15.0 ms 1.50 ms ok"
        );
    }

    #[test]
    fn the_table_names_the_others_and_shows_rates_from_their_better_end() {
        let figure = Figure::new("stream", Unit::GigabitsPerSecond, vec![4.0, 6.0, 5.0])
            .other("rival", vec![4.5])
            .other("absent", vec![])
            .limit(MEDIAN, Limit::NotBelow("rival"))
            .limit(MEDIAN, Limit::NotBelow("absent"));
        let table = table(&[figure]);
        let words: Vec<&str> = table.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "stream 3 6.00 Gbit/s 5.00 Gbit/s 4.00 Gbit/s at least 4.50 Gbit/s (rival), at least absent, not \
             measured rival 4.50 Gbit/s, no absent OVER"
        );
    }

    #[test]
    fn the_json_has_every_sample() {
        let value: serde_json::Value = serde_json::from_str(&json(&[figure()]).unwrap()).unwrap();
        assert_eq!(value["figures"][0]["samples"], json!([1.0, 2.0, 3.0]));
        assert_eq!(value["figures"][0]["over"], json!(false));
        assert_eq!(value["figures"][0]["limits"][1], json!({"percent": 99, "at_most": 15.0}));
    }
}
