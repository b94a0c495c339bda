//! The report as one page without anything from elsewhere.

use minijinja::{Environment, context};

use super::report::Report;

/// The page's template.
const TEMPLATE: &str = include_str!("../../../templates/evaluation.html");

/// Fills the page. Names from task files and configurations are escaped.
pub(super) fn render(report: &Report) -> Result<String, String> {
    let mut environment = Environment::new();
    let fail = |error: minijinja::Error| format!("the page: {error}");
    environment.add_filter("fixed", fixed);
    // The name's ending turns escaping on.
    environment.add_template("evaluation.html", TEMPLATE).map_err(fail)?;
    let template = environment.get_template("evaluation.html").map_err(fail)?;
    template.render(context! { report }).map_err(fail)
}

/// A number with so many digits after the point; a zero has no sign.
fn fixed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| matches!(c, '0' | '.')) => rest.to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn zeros_have_no_sign() {
        let found = [(-0.0, 0), (-0.04, 1), (-0.05, 1), (1.5, 0)].map(|(v, d)| super::fixed(v, d));
        assert_eq!(found, ["0", "0.0", "-0.1", "2"]);
    }
}
