//! Cards of new modules: what they were made of, and how.

use std::fmt::Write as _;

use super::source::Source;
use super::{Errors, SiteReport};

/// The parts that a module can have in the making of another, each a key of the card's header.
const ROLES: [&str; 4] = ["derived_from", "general", "origin", "source"];

/// A module that another was made of.
pub(crate) struct Origin {
    /// Its part in the making, one of [`ROLES`].
    pub(crate) role: &'static str,
    /// Its name.
    pub(crate) name: String,
    /// Its generation, as hexadecimal digits.
    pub(crate) generation: String,
    /// Its factor, where the method has one.
    pub(crate) weight: Option<f64>,
}

impl Origin {
    /// An origin that is a LoRA.
    pub(crate) fn of(role: &'static str, source: &Source, weight: Option<f64>) -> Self {
        let generation = source.content.generation.to_string();
        Self { role, name: source.name.clone(), generation, weight }
    }
}

/// A card that is being written.
pub(crate) struct Provenance {
    /// The name of the new module.
    pub(crate) name: String,
    /// The method that makes it, which is also its last tag.
    pub(crate) method: &'static str,
    /// A sentence on what was done, in Markdown.
    pub(crate) summary: String,
    /// Tags of the sources, each once.
    pub(crate) tags: Vec<String>,
    /// Entries that are carried over, such as the description.
    pub(crate) kept: Vec<(String, String)>,
    /// Settings and errors, in the order in which they are written.
    pub(crate) parameters: Vec<(&'static str, String)>,
    /// Modules that it was made of.
    pub(crate) origins: Vec<Origin>,
}

impl Provenance {
    /// Card of a module that is made of others: their tags together, and of their descriptions and
    /// licences those that all share.
    pub(crate) fn of(name: &str, method: &'static str, sources: &[&Source]) -> Self {
        let mut tags: Vec<String> = Vec::new();
        for tag in sources.iter().flat_map(|source| &source.content.card.tags) {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        let entry = |source: &Source, key: &str| {
            let mut entries = source.content.card.metadata.iter();
            entries.find(|(found, _)| found == key).map(|(_, value)| value.clone())
        };
        let kept = ["description", "license"].into_iter().filter_map(|key| {
            let value = entry(sources.first()?, key)?;
            let shared = sources.iter().all(|source| entry(source, key).as_ref() == Some(&value));
            shared.then(|| (key.to_owned(), value))
        });
        Self {
            name: name.to_owned(),
            method,
            summary: String::new(),
            tags,
            kept: kept.collect(),
            parameters: Vec::new(),
            origins: Vec::new(),
        }
    }

    /// Adds the distances of the result from the deltas that the method means, as the parameters
    /// `relative_error_worst` and `relative_error_mean`.
    pub(crate) fn add_errors(&mut self, reports: &[SiteReport]) {
        let errors = Errors::of(reports);
        let number = |value: f64| format!("{value:.3e}");
        self.parameters.extend([
            ("relative_error_worst", number(errors.worst)),
            ("relative_error_mean", number(errors.mean)),
        ]);
    }

    /// The text of the card: a header in YAML between lines of `---`, then Markdown with the
    /// summary and a table of origins.
    ///
    /// Evaluation scores of the sources are not carried over.
    pub(crate) fn card(&self) -> String {
        let mut text = String::from("---\ntags:\n");
        for tag in self.tags.iter().map(String::as_str).chain([self.method]) {
            let _ = writeln!(text, "- {}", quote(tag));
        }
        for (key, value) in &self.kept {
            let _ = writeln!(text, "{key}: {}", quote(value));
        }
        let _ = writeln!(text, "method: {}", self.method);
        for (key, value) in &self.parameters {
            let _ = writeln!(text, "{key}: {}", quote(value));
        }
        for role in ROLES {
            let mut origins = self.origins.iter().filter(|origin| origin.role == role).peekable();
            if origins.peek().is_some() {
                let _ = writeln!(text, "{role}:");
            }
            origins.for_each(|origin| {
                let _ = writeln!(text, "- {}", origin.generation);
            });
        }
        let _ = write!(text, "---\n\n# {}\n\n{}\n", self.name, self.summary);
        let _ = write!(text, "Scores of what it was made from do not hold for it.\n\n");
        let weighted = self.origins.iter().any(|origin| origin.weight.is_some());
        let (head, line) = if weighted { (" weight |", "---|") } else { ("", "") };
        let _ = writeln!(text, "| | name | generation |{head}\n|---|---|---|{line}");
        for Origin { role, name, generation, weight } in &self.origins {
            let weight = weight.map(|weight| format!(" {weight} |")).unwrap_or_default();
            let role = role.replace('_', " ");
            let _ = writeln!(text, "| {role} | {name} | `{generation}` |{weight}");
        }
        text
    }
}

/// A string of YAML in double quotes. Quotes, backslashes and line breaks become `'`, so nothing
/// has to be escaped.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace(['"', '\\', '\n'], "'"))
}

#[cfg(test)]
mod tests {
    use polyskill_adapters::card::Card;

    use super::*;

    #[test]
    fn generations_of_every_role_are_in_the_header() {
        let origins = ROLES.map(|role| Origin {
            role,
            name: "m".to_owned(),
            generation: format!("generation of {role}"),
            weight: None,
        });
        let expected = ROLES.map(|role| (role.to_owned(), format!("generation of {role}")));
        let provenance = Provenance { origins: origins.into(), ..Provenance::of("x", "cat", &[]) };
        let card = Card::parse(provenance.card().as_bytes());
        for role in expected {
            assert!(card.metadata.contains(&role), "{role:?}: {:?}", card.metadata);
        }
    }
}
