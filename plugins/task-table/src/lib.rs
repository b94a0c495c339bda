//! Task table: a task names its skills, and the modules with these tags answer together.
//!
//! After SkillNet (Zhang et al., "SkillNet-NLU: A Sparsely Activated Model for General-Purpose Natural
//! Language Understanding", 2022), where a table made by hand says which skills a task activates.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `task` | none | the request's tasks, separated by commas |
//! | `table` | empty | `task=tag+tag; other=tag`; a task that is not in it stands for the tag of its name |
//! | `keywords` | true | without `task`: tasks and tags that the text names |
//! | `weights` | `uniform` | `uniform`, or `metadata`: in proportion to each module's metadata `weight` (1 without) |
//! | `mode` | `mixture` | `mixture`, or `narrow`: the next router of the chain chooses among them |
//!
//! Modules that act as a whole, such as prefixes, do so beside the mixture of the others.

use std::collections::BTreeSet;

use polyskill_sdk::{
    Descriptor, Host, LibraryChange, ModuleInfo, ParameterError, Parameters, Pick, Plan, Request,
    RouteError, Router, Value,
};

/// A module's share of a mixture, in its metadata. Used where the parameter `weights` is
/// `metadata`.
const WEIGHT: &str = "weight";

/// The router. What it knows of the modules is a cache.
#[derive(Debug)]
pub struct TaskTable {
    /// The library's modules by index; `None` when they have to be asked for again.
    modules: Option<Vec<Skills>>,
}

/// The skills of one module, from its card.
#[derive(Debug)]
struct Skills {
    /// Its tags, as [`normalised`] writes them.
    tags: Vec<String>,
    /// Its metadata `weight`: finite and at least 0, and 1 where it is missing or no number.
    weight: f32,
    /// True for a module without a share of a mixture, such as a prefix.
    acts_whole: bool,
}

polyskill_sdk::export!(TaskTable);

impl Router for TaskTable {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        Settings::read(parameters).map_err(|error| error.to_string())?;
        Ok(Self { modules: None })
    }

    fn descriptor(&self) -> Descriptor {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Descriptor { name: "task-table".to_owned(), version, causal: true }
    }

    fn library_changed(&mut self, _: &mut dyn Host, _: &LibraryChange) -> Result<(), String> {
        self.modules = None;
        Ok(())
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let settings = Settings::read(&request.parameters)?;
        let modules = self
            .modules
            .get_or_insert_with(|| host.modules().iter().map(Skills::of).collect::<Vec<_>>());
        let known = |&m: &u32| Some((m, modules.get(m as usize)?));
        let candidates: Vec<(u32, &Skills)> = request.candidates.iter().filter_map(known).collect();
        let tags = settings.tags(request.text.as_deref(), &candidates);
        let mut active = candidates;
        active.retain(|(_, skills)| skills.tags.iter().any(|tag| tags.contains(tag)));
        if settings.narrow && !active.is_empty() {
            return Ok(Plan::Narrowed(active.into_iter().map(|(module, _)| module).collect()));
        }
        let picks = mixture(&active, settings.uniform);
        if picks.is_empty() {
            return Err(RouteError::Abstain);
        }
        Ok(Plan::output_sum(picks))
    }
}

/// The modules in their shares; those that act as a whole at the weight 1. A share is w / Σ w over
/// the modules of the mixture, w being 1 or the module's weight. Modules of the weight 0 are left
/// out.
fn mixture(active: &[(u32, &Skills)], uniform: bool) -> Vec<Pick> {
    let share = |skills: &Skills| if uniform { 1.0 } else { skills.weight };
    let shares = active.iter().filter(|(_, skills)| !skills.acts_whole);
    let sum: f32 = shares.map(|(_, skills)| share(skills)).sum();
    let pick = |(module, skills): &(u32, &Skills)| {
        let weight = match skills.acts_whole {
            true => f32::from(u8::from(share(skills) > 0.0)),
            false => share(skills) / sum,
        };
        Pick { module: *module, weight }
    };
    active.iter().map(pick).filter(|pick| pick.weight > 0.0).collect()
}

impl Skills {
    /// Reads a module's card.
    fn of(module: &ModuleInfo) -> Self {
        let weight = module.metadata.iter().find(|(key, _)| key == WEIGHT);
        let weight = weight.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(1.0_f32);
        Self {
            tags: module.tags.iter().map(|tag| normalised(tag)).collect(),
            weight: if weight.is_finite() { weight.max(0.0) } else { 1.0 },
            acts_whole: module.acts_whole(),
        }
    }
}

/// Lower-case words with one space between. Runs of letters and digits are words, so that `sum-up`
/// and `Sum up` are equal.
fn normalised(text: &str) -> String {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// Parameters of a request.
#[derive(Debug)]
struct Settings {
    /// The request's tasks, as [`normalised`] writes them, without empty ones.
    tasks: Vec<String>,
    /// Tasks and their tags.
    table: Vec<(String, Vec<String>)>,
    /// Looks for tasks and tags in the text where the request names no task.
    keywords: bool,
    /// Gives all modules the same share.
    uniform: bool,
    /// Leaves the choice among the modules to the next router.
    narrow: bool,
}

impl Settings {
    /// Checks all parameters, unknown ones included.
    fn read(parameters: &Parameters) -> Result<Self, ParameterError> {
        parameters.only(&["task", "table", "keywords", "weights", "mode"])?;
        let tasks = text(parameters, "task")?.split(',').map(normalised);
        let entries = text(parameters, "table")?.split(';').filter(|e| !e.trim().is_empty());
        let entry = |entry: &str| {
            let (task, tags) = entry.split_once('=').ok_or_else(|| {
                let message = format!("found `{}`, expected `task=tag+tag`", entry.trim());
                ParameterError { name: "table".to_owned(), message }
            })?;
            Ok((normalised(task), tags.split('+').map(normalised).collect()))
        };
        Ok(Self {
            tasks: tasks.filter(|task| !task.is_empty()).collect(),
            table: entries.map(entry).collect::<Result<_, _>>()?,
            keywords: parameters.flag("keywords", true)?,
            uniform: parameters.choice("weights", &["uniform", "metadata"])? == 0,
            narrow: parameters.choice("mode", &["mixture", "narrow"])? == 1,
        })
    }

    /// The tags of the request's tasks. A task of the table stands for its tags, and any other for
    /// the tag of its name. Without a task, those of the table and the candidates' tags that the
    /// text holds as whole words are taken. An empty set is the answer where nothing is named.
    fn tags(&self, text: Option<&str>, candidates: &[(u32, &Skills)]) -> BTreeSet<String> {
        let mut tasks: BTreeSet<&str> = self.tasks.iter().map(String::as_str).collect();
        let text = text.filter(|_| tasks.is_empty() && self.keywords);
        let text = text.map(|text| format!(" {} ", normalised(text)));
        if let Some(text) = &text {
            let named = self.table.iter().map(|(task, _)| task);
            let tags = candidates.iter().flat_map(|(_, skills)| &skills.tags);
            let names = named.chain(tags).filter(|name| !name.is_empty());
            tasks.extend(
                names.filter(|name| text.contains(&format!(" {name} "))).map(String::as_str),
            );
        }
        let tags = |task: &str| match self.table.iter().find(|(name, _)| name == task) {
            Some((_, tags)) => tags.clone(),
            None => vec![task.to_owned()],
        };
        tasks.into_iter().flat_map(tags).collect()
    }
}

/// A parameter that is a text; empty where it is missing.
fn text<'a>(parameters: &'a Parameters, name: &str) -> Result<&'a str, ParameterError> {
    match parameters.get(name) {
        None => Ok(""),
        Some(Value::Text(text)) => Ok(text),
        Some(other) => Err(wrong(name, other, "a text")),
    }
}

/// The error of a parameter that is not of the expected kind.
fn wrong(name: &str, found: &Value, expected: &str) -> ParameterError {
    let message = format!("found {found:?}, expected {expected}");
    ParameterError { name: name.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyskill_sdk::testing::StubHost;

    fn plan(text: Option<&str>, parameters: &[(&str, Value)]) -> Result<Plan, RouteError> {
        plan_with(StubHost::with_modules(3), text, parameters)
    }

    fn plan_with(
        mut host: StubHost,
        text: Option<&str>,
        parameters: &[(&str, Value)],
    ) -> Result<Plan, RouteError> {
        for (index, tags) in (0..).zip([vec!["German"], vec!["iso-date", "format"], vec!["format"]])
        {
            let module = host.module_mut(index).unwrap();
            module.tags = tags.into_iter().map(str::to_owned).collect();
        }
        let metadata = &mut host.module_mut(2).unwrap().metadata;
        metadata.push((WEIGHT.to_owned(), "3".to_owned()));
        let mut router = TaskTable::init(&mut host, &Parameters::default()).unwrap();
        let mut request = Request::for_candidates(&[0, 1, 2]);
        request.text = text.map(str::to_owned);
        let parameter = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
        request.parameters = Parameters(parameters.iter().map(parameter).collect());
        router.plan(&mut host, &request)
    }

    fn task(name: &str) -> (&str, Value) {
        ("task", Value::Text(name.to_owned()))
    }

    fn fixed(picks: &[(u32, f32)]) -> Result<Plan, RouteError> {
        let picks = picks.iter().map(|&(module, weight)| Pick { module, weight });
        Ok(Plan::output_sum(picks))
    }

    #[test]
    fn a_task_activates_the_modules_with_its_tags() {
        assert_eq!(plan(None, &[task("german")]), fixed(&[(0, 1.0)]));
        assert_eq!(plan(None, &[task("ISO date, german")]), fixed(&[(0, 0.5), (1, 0.5)]));
        let table = ("table", Value::Text("letters = german+iso-date; x=format".to_owned()));
        let letters = [task("letters"), table.clone()];
        assert_eq!(plan(None, &letters), fixed(&[(0, 0.5), (1, 0.5)]));
        let narrow = [task("x"), table, ("mode", Value::Text("narrow".to_owned()))];
        assert_eq!(plan(None, &narrow), Ok(Plan::Narrowed(vec![1, 2])));
        assert_eq!(plan(None, &[task("poetry")]), Err(RouteError::Abstain));
    }

    /// A prefix has no half: it acts whole, beside the shares of the others.
    #[test]
    fn what_acts_as_a_whole_has_no_share() {
        for kind in ["kv-prefix", "soft-prompt", "expert-policy"] {
            let mut host = StubHost::with_modules(3);
            host.module_mut(0).unwrap().kind = kind.to_owned();
            let both = [task("iso-date, german")];
            assert_eq!(plan_with(host, None, &both), fixed(&[(0, 1.0), (1, 1.0)]), "{kind}");
        }
    }

    #[test]
    fn weights_come_from_metadata() {
        let weights = ("weights", Value::Text("metadata".to_owned()));
        assert_eq!(plan(None, &[task("format"), weights]), fixed(&[(1, 0.25), (2, 0.75)]));
    }

    #[test]
    fn without_a_task_the_text_names_it() {
        assert_eq!(plan(Some("As an ISO date, please"), &[]), fixed(&[(1, 1.0)]));
        assert_eq!(plan(Some("Germany"), &[]), Err(RouteError::Abstain));
        // The flat ABI carries flags as numbers.
        for off in [Value::Flag(false), Value::Number(0.0)] {
            let off = ("keywords", off);
            assert_eq!(plan(Some("in German"), &[off]), Err(RouteError::Abstain));
        }
        let on = ("keywords", Value::Number(1.0));
        assert_eq!(plan(Some("in German"), &[on]), fixed(&[(0, 1.0)]));
        assert_eq!(plan(Some("in German"), &[task("iso-date")]), fixed(&[(1, 1.0)]));
        assert_eq!(plan(None, &[]), Err(RouteError::Abstain));
    }

    #[test]
    fn bad_parameters_are_the_callers_fault() {
        for (name, value) in [
            ("task", Value::Number(1.0)),
            ("table", Value::Text("german".to_owned())),
            ("keywords", Value::Text("yes".to_owned())),
            ("weights", Value::Text("equal".to_owned())),
        ] {
            let error = plan(None, &[(name, value)]).unwrap_err();
            assert!(matches!(error, RouteError::InvalidParameter(e) if e.name == name));
        }
    }
}
