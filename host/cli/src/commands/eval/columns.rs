//! Columns of a comparison: the base, modules, routers, and what they are told.

use std::path::Path;

use polyskill_engine::Selection;
use polyskill_route::RouteSpec;
use serde::{Deserialize, Serialize};

use super::tasks::Item;
use polyskill_server::service::Service;

/// One thing that answers all items.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Its name in the tables.
    pub name: String,
    /// The router and the modules by weight that answer, as in a skill set.
    #[serde(flatten)]
    pub route: RouteSpec,
    /// Lets the item's own module answer, at weight 1; the base where it has none.
    #[serde(default, skip_serializing_if = "is_false")]
    pub own: bool,
    /// The name of a column before, whose most picked module of an item answers it alone and in
    /// full. The base answers where that column picked none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_picked_of: Option<String>,
}

/// True for a field that need not be written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

/// The file of columns.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The `[[column]]` tables, in the order of the report.
    column: Vec<Column>,
}

impl Column {
    /// The composition that answers an item with a prompt of so many tokens; `most_picked` is the
    /// module that the column in `most_picked_of` used most.
    ///
    /// Routers are told the parameters, the candidates, the last message of the item and the tokens
    /// of its prompt.
    pub(super) fn selection(
        &self,
        item: &Item,
        prompt_tokens: usize,
        most_picked: Option<&str>,
    ) -> Selection {
        let alone = |name: &str| Selection::Weighted(vec![(name.to_owned(), 1.0)]);
        if self.own {
            return item.module.as_deref().map_or(Selection::Base, alone);
        }
        if self.most_picked_of.is_some() {
            return most_picked.map_or(Selection::Base, alone);
        }
        Selection::from(&self.route).told(prompt_tokens, Some(item.last_said()), 0)
    }

    /// Refuses a column that says two things at once, or that stands for nothing; `before` are the
    /// columns above it in the file.
    fn check(&self, before: &[Self]) -> Result<(), String> {
        if self.name.trim().is_empty() {
            return Err("the name is empty".to_owned());
        }
        let ways = [self.route.router.is_some(), self.own, self.most_picked_of.is_some()];
        if ways.into_iter().filter(|way| *way).count() > 1 {
            return Err("expected one of `router`, `own` and `most_picked_of`".to_owned());
        }
        if (self.own || self.most_picked_of.is_some()) && !self.route.adapters().is_empty() {
            return Err("`adapters` is for routers, or stands alone".to_owned());
        }
        self.route.check().map_err(|error| error.to_string())?;
        if before.iter().any(|other| other.name == self.name) {
            return Err("the name is taken by a column before".to_owned());
        }
        match &self.most_picked_of {
            Some(other) if !before.iter().any(|column| column.name == *other) => {
                Err(format!("`most_picked_of` is `{other}`, which is no column before"))
            }
            _ => Ok(()),
        }
    }
}

/// Reads `[[column]]` tables. Names of modules and routers are not looked up yet.
///
/// # Errors
/// A message with the file and the column: a file that cannot be read, or a column that makes no
/// sense.
pub fn read_columns(path: &Path) -> Result<Vec<Column>, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
    let File { column: columns } = toml::from_str(&text).map_err(|error| fail(&error))?;
    for (at, column) in columns.iter().enumerate() {
        column
            .check(&columns[..at])
            .map_err(|problem| fail(&format!("column `{}`: {problem}", column.name)))?;
    }
    Ok(columns)
}

/// The columns where no file names any: the base, each item's own module, and the skill sets.
pub(super) fn default_columns(service: &Service) -> Vec<Column> {
    let named = |name: &str| Column { name: name.to_owned(), ..Column::default() };
    let sets = service.skill_sets.iter().map(|set| Column {
        name: set.id.clone(),
        route: set.route.clone(),
        ..Column::default()
    });
    [named("base"), Column { own: true, ..named("own module") }].into_iter().chain(sets).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_are_told_of_the_prompt() {
        let item = serde_json::json!({"prompt": "How many?", "references": ["4"]});
        let item: Item = serde_json::from_value(item).unwrap();
        let column = Column {
            route: serde_json::from_value(serde_json::json!({"router": "arrow"})).unwrap(),
            ..Column::default()
        };
        let Selection::Routed(asked) = column.selection(&item, 7, None) else {
            panic!("not routed");
        };
        assert_eq!((asked.prompt_tokens, asked.text.as_deref()), (7, Some("How many?")));
    }

    #[test]
    fn columns_that_make_no_sense_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("columns.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_columns(&path)
        };
        let good = "[[column]]\nname = \"a\"\nrouter = \"arrow\"\nparams = { top_k = 2 }\n";
        assert_eq!(read(good).unwrap().len(), 1);
        for (text, part) in [
            ("[[column]]\nname = \"a\"\nown = true", "the name is taken"),
            ("[[column]]\nname = \"b\"\nown = true\nrouter = \"r\"", "one of `router`, `own`"),
            ("[[column]]\nname = \"b\"\nmost_picked_of = \"c\"", "`c`, which is no column before"),
            ("[[column]]\nname = \"b\"\nparams = { k = 1 }", "need a `router`"),
            ("[[column]]\nname = \"b\"\nown = true\nadapters = { x = 1.0 }", "`adapters` is for"),
            (
                "[[column]]\nname = \"b\"\nrouter = \"r\"\nparams = { k = [] }",
                "expected a flag, a number or a text",
            ),
            ("[[column]]\nname = \"b\"\nweight = 1", "unknown field `weight`"),
            ("[[column]]\nname = \" \"", "the name is empty"),
        ] {
            let message = read(&format!("{good}{text}\n")).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
