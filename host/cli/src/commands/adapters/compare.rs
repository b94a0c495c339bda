//! `polyskill adapters diff`.

use std::io::Write;
use std::path::Path;

use polyskill_workshop::inspect::{Difference, Setting, SiteDifference, diff};
use serde_json::{Value as Json, json};

use super::table::{number, table};
use super::{message, say};

/// Sites that are shown, those with the largest distance; all are in the JSON.
const SHOWN: usize = 12;

/// Compares two modules and prints a table, or JSON with every site.
pub(super) fn run(
    one: &Path,
    two: &Path,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), String> {
    let found = diff(one, two).map_err(message)?;
    match as_json {
        true => say(out, &format!("{:#}", to_json(&found))),
        false => say(out, &text(&found)),
    }
}

/// The comparison for a terminal: the settings that differ, then the sites that are furthest apart.
///
/// Values of settings are cut to 40 characters. Modules of the same generation have the same files,
/// so nothing more is said of them.
fn text(found: &Difference) -> String {
    let [one, two] = found.generations;
    if one == two {
        return format!("the same generation {one}");
    }
    let mut lines = vec![format!("generation {one}\n       and {two}"), String::new()];
    let cell = |value: &Option<Json>| {
        let text = value.as_ref().map_or("not set".to_owned(), Json::to_string);
        let short: String = text.chars().take(40).collect();
        if short == text { text } else { format!("{short}...") }
    };
    let setting = |s: &Setting| vec![s.key.clone(), cell(&s.values[0]), cell(&s.values[1])];
    let rows: Vec<Vec<String>> = found.settings.iter().map(setting).collect();
    if !rows.is_empty() {
        lines.extend([table(&["setting", "one", "two"], &rows), String::new()]);
    }
    let mut sites: Vec<&SiteDifference> = found.sites.iter().collect();
    sites.sort_by(|a, b| b.distance.total_cmp(&a.distance));
    let rank = |rank: Option<usize>| rank.map_or("-".to_owned(), |rank| rank.to_string());
    let angle =
        |cosine: Option<f64>| cosine.map_or("-".to_owned(), |cosine| format!("{cosine:.4}"));
    let row = |site: &&SiteDifference| {
        let [one, two] = site.ranks.map(rank);
        let [norm_one, norm_two] = site.norms.map(number);
        let site_name = site.site.clone();
        vec![site_name, one, two, norm_one, norm_two, number(site.distance), angle(site.cosine)]
    };
    let rows: Vec<Vec<String>> = sites.iter().take(SHOWN).map(row).collect();
    let head = ["site", "rank", "rank", "norm", "norm", "distance", "cosine"];
    lines.push(table(&head, &rows));
    if sites.len() > SHOWN {
        lines.push(format!("and {} sites that are closer", sites.len() - SHOWN));
    }
    let (distance, cosine) = (number(found.distance), angle(found.cosine));
    lines.push(format!("\nall sites: relative distance {distance}, cosine {cosine}"));
    lines.join("\n")
}

/// The comparison as JSON; a site that one module lacks has a rank of `null` there.
fn to_json(found: &Difference) -> Json {
    let setting = |s: &Setting| json!({"key": s.key, "values": s.values});
    let site = |s: &SiteDifference| {
        json!({
            "site": s.site, "ranks": s.ranks, "norms": s.norms, "distance": s.distance,
            "cosine": s.cosine,
        })
    };
    json!({
        "generations": found.generations.map(|generation| generation.to_string()),
        "settings": found.settings.iter().map(setting).collect::<Vec<_>>(),
        "sites": found.sites.iter().map(site).collect::<Vec<_>>(),
        "distance": found.distance,
        "cosine": found.cosine,
    })
}
