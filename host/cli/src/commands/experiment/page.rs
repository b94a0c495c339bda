//! A report as one page without anything from elsewhere.

use minijinja::{Environment, context};
use serde_json::Value as Json;

/// The page's template.
const TEMPLATE: &str = include_str!("../../../templates/experiment.html");

/// Fills the page. Names in the report are escaped.
pub(super) fn render(report: &Json) -> Result<String, String> {
    let mut environment = Environment::new();
    let fail = |error: minijinja::Error| format!("the page: {error}");
    environment.add_filter("short", short);
    environment.add_filter("at", at);
    environment.add_filter("probability", probability);
    // The name's ending turns escaping on.
    environment.add_template("experiment.html", TEMPLATE).map_err(fail)?;
    let template = environment.get_template("experiment.html").map_err(fail)?;
    template.render(context! { report }).map_err(fail)
}

/// A number with three significant digits, at most six after the point; 0 for what is not finite.
fn short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return "0".to_owned();
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 6) as usize;
    format!("{value:.digits$}")
}

/// A p-value with three digits; those below 0.001 are not told apart.
fn probability(value: f64) -> String {
    if value < 0.001 { "< 0.001".to_owned() } else { format!("{value:.3}") }
}

/// The place of a value on a line of `width` that shows −`most` to `most`. Values beyond are put at
/// its ends.
fn at(value: f64, most: f64, width: f64) -> f64 {
    let most = if most > 0.0 { most } else { 1.0 };
    ((value / most + 1.0) / 2.0 * width).clamp(0.0, width)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([probability(0.0), probability(0.013_66)], ["< 0.001", "0.014"]);
        let found = [0.123_456, -12.345, 1_234.5, 0.0, 0.000_01].map(short);
        assert_eq!(found, ["0.123", "-12.3", "1234", "0", "0.000010"]);
        assert_eq!(
            [at(0.0, 2.0, 100.0), at(2.0, 2.0, 100.0), at(-9.0, 2.0, 100.0)],
            [50.0, 100.0, 0.0]
        );
    }

    #[test]
    fn names_from_outside_are_escaped() {
        let report = json!({
            "name": "<script>", "mode": "split", "unit": "user", "control": "a", "holdout": 0.0, "arms": [],
            "sample_ratio": {"p_value": 1.0, "mismatch": false}, "metrics": [], "stopped_arms": {},
            "verdict": {"state": "undecided", "arm": null, "reason": "<b>"},
        });
        let page = render(&report).unwrap();
        assert!(
            page.contains("&lt;script&gt;") && !page.contains("<script>") && !page.contains("<b>")
        );
    }
}
