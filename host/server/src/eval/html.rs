//! The report as one page without anything from elsewhere.

use minijinja::{Environment, context};

use super::report::Report;

const TEMPLATE: &str = include_str!("../../templates/evaluation.html");

pub(super) fn render(report: &Report) -> Result<String, String> {
    let mut environment = Environment::new();
    let fail = |error: minijinja::Error| format!("the page: {error}");
    environment.add_filter("fixed", |value: f64, digits: usize| format!("{value:.digits$}"));
    // The name's ending turns escaping on.
    environment.add_template("evaluation.html", TEMPLATE).map_err(fail)?;
    let template = environment.get_template("evaluation.html").map_err(fail)?;
    template.render(context! { report }).map_err(fail)
}
