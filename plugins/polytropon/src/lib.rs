//! Polytropon: learned weights of skills per task.
//!
//! Ponti, Sordoni, Bengio and Reddy, "Combining Parameter-efficient Modules for Task-level Generalisation"
//! (2023). A task has a logit z per skill; the weights are σ(z) / (Σσ(z) + 1e-12), and the skills' A and B
//! are merged with them.
//!
//! | parameter | default | meaning |
//! |---|---|---|
//! | `task` | none | the request's task; without it the router abstains |
//! | `tasks` | empty | `task: name=0.5, other=-1; next: ...`: logits of modules by name |
//! | `combine` | `ab-merge` | `ab-merge`, as in the paper, or `output-sum` |
//!
//! A task that is not in `tasks` has the logits that modules carry as metadata `polytropon.<task>`.

use polyskill_sdk::gate::Combine;
use polyskill_sdk::{
    Descriptor, Host, ParameterError, Parameters, Pick, Plan, Request, RouteError, Router, Value,
};

/// Before the task in a module's metadata.
const PREFIX: &str = "polytropon.";
/// Added to the sum. It keeps a sum of zero from dividing; the paper's value.
const EPSILON: f64 = 1e-12;

/// The router. It keeps nothing: logits come with the request or with the modules.
#[derive(Debug)]
pub struct Polytropon;

polyskill_sdk::export!(Polytropon);

impl Router for Polytropon {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        let check = || {
            parameters.choice("combine", &["ab-merge", "output-sum"])?;
            text(parameters, "task")?;
            table(parameters).map(drop)
        };
        check().map_err(|error: ParameterError| error.to_string())?;
        Ok(Self)
    }

    fn descriptor(&self) -> Descriptor {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Descriptor { name: "polytropon".to_owned(), version, causal: true }
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let task = text(&request.parameters, "task")?.trim();
        let merge = request.parameters.choice("combine", &["ab-merge", "output-sum"])? == 0;
        let tasks = table(&request.parameters)?;
        if task.is_empty() {
            return Err(RouteError::Abstain);
        }
        let logits = logits(host, request, &tasks, task)?;
        let weights = normalised(&logits);
        let picks = request.candidates.iter().zip(&logits).zip(&weights);
        let picks = picks.filter(|((_, logit), _)| logit.is_some());
        let pick = |((&module, _), &weight)| Pick { module, weight };
        let combine = if merge { Combine::AbMerge } else { Combine::OutputSum };
        Ok(Plan::Fixed { picks: picks.map(pick).collect(), combine })
    }
}

/// A task and the logits of its skills by name.
type Task<'a> = (&'a str, Vec<(&'a str, f64)>);

/// The logit of each candidate, where the task has one. `tasks` goes before the modules' metadata.
/// In the order of the candidates. A module that the task's row does not name has none, even if its
/// metadata has one.
///
/// # Errors
/// If no candidate has one.
fn logits(
    host: &dyn Host,
    request: &Request,
    tasks: &[Task<'_>],
    task: &str,
) -> Result<Vec<Option<f64>>, ParameterError> {
    let row = tasks.iter().find(|(name, _)| *name == task);
    let key = format!("{PREFIX}{task}");
    let logit = |&module: &u32| {
        let info = host.module(module)?;
        match row {
            Some((_, row)) => row.iter().find(|(name, _)| *name == info.name).map(|(_, z)| *z),
            None => {
                let value = &info.metadata.iter().find(|(name, _)| *name == key)?.1;
                value.trim().parse().ok().filter(|z: &f64| z.is_finite())
            }
        }
    };
    let logits: Vec<Option<f64>> = request.candidates.iter().map(logit).collect();
    match logits.iter().any(Option::is_some) {
        true => Ok(logits),
        false => Err(wrong("task", format!("no module of this request has a logit for `{task}`"))),
    }
}

/// σ(z) / (Σσ(z) + ε); 0 without a logit. The weights are those of Ponti et al. without their
/// Gumbel noise, which is for training alone. A module without a logit does not count in the sum.
fn normalised(logits: &[Option<f64>]) -> Vec<f32> {
    let sigmoid = |z: &Option<f64>| z.map_or(0.0, |z| 1.0 / (1.0 + (-z).exp()));
    let sum = logits.iter().map(sigmoid).sum::<f64>() + EPSILON;
    logits.iter().map(|z| (sigmoid(z) / sum) as f32).collect()
}

/// A parameter that is a text; empty where it is missing.
fn text<'a>(parameters: &'a Parameters, name: &str) -> Result<&'a str, ParameterError> {
    match parameters.get(name) {
        None => Ok(""),
        Some(Value::Text(text)) => Ok(text),
        Some(other) => Err(wrong(name, format!("found {other:?}, expected a text"))),
    }
}

/// An error of a parameter.
fn wrong(name: &str, message: String) -> ParameterError {
    ParameterError { name: name.to_owned(), message }
}

/// Reads `tasks`. Rows have `;` between them and skills `,`. A name may hold `=`, as the last one
/// before the number counts. Refuses unknown parameters.
fn table(parameters: &Parameters) -> Result<Vec<Task<'_>>, ParameterError> {
    parameters.only(&["task", "tasks", "combine"])?;
    let skill = |entry: &'_ str| {
        let bad = || wrong("tasks", format!("found `{}`, expected `name=number`", entry.trim()));
        let (_, value) = entry.rsplit_once('=').ok_or_else(bad)?;
        value.trim().parse().ok().filter(|z: &f64| z.is_finite()).ok_or_else(bad)
    };
    let rows = text(parameters, "tasks")?.split(';').filter(|row| !row.trim().is_empty());
    rows.map(|row| {
        let bad =
            || wrong("tasks", format!("found `{}`, expected `task: name=number`", row.trim()));
        let (task, skills) = row.split_once(':').ok_or_else(bad)?;
        let skills = skills.split(',').filter(|entry| !entry.trim().is_empty());
        let skills = skills.map(|entry| {
            let z = skill(entry)?;
            Ok((entry.rsplit_once('=').unwrap_or_default().0.trim(), z))
        });
        Ok((task.trim(), skills.collect::<Result<_, ParameterError>>()?))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyskill_sdk::testing::StubHost;

    /// Logits and weights of `poly_router` in the reference values: tasks 2 and 0, first split.
    const REFERENCE: [([f64; 2], [f32; 2]); 2] = [
        ([-1.023_346_19, -0.557_316_184], [0.420_616, 0.579_384]),
        ([0.206_748_635, -0.809_466_004], [0.641_65, 0.358_349]),
    ];

    fn plan(
        host: &mut StubHost,
        candidates: &[u32],
        parameters: &[(&str, &str)],
    ) -> Result<Plan, RouteError> {
        let mut router = Polytropon::init(host, &Parameters::default()).unwrap();
        let mut request = Request::for_candidates(candidates);
        let parameter =
            |(name, value): &(&str, &str)| ((*name).to_owned(), Value::Text((*value).to_owned()));
        request.parameters = Parameters(parameters.iter().map(parameter).collect());
        router.plan(host, &request)
    }

    fn require(found: &[f32], expected: &[f32]) {
        let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(found.len() == expected.len() && close, "{found:?} {expected:?}");
    }

    #[test]
    fn weights_are_the_references() {
        for (logits, expected) in REFERENCE {
            require(&normalised(&logits.map(Some)), &expected);
            let mut host = StubHost::with_modules(3);
            let tasks =
                format!("other: module-0=9; this: module-2={}, module-1={};", logits[1], logits[0]);
            let parameters =
                [("task", "this"), ("tasks", tasks.as_str()), ("combine", "output-sum")];
            let planned = plan(&mut host, &[0, 1, 2], &parameters);
            let Ok(Plan::Fixed { picks, combine: Combine::OutputSum }) = planned else { panic!() };
            assert_eq!(picks.iter().map(|pick| pick.module).collect::<Vec<_>>(), [1, 2]);
            require(&picks.iter().map(|pick| pick.weight).collect::<Vec<_>>(), &expected);
        }
    }

    #[test]
    fn skills_are_merged_unless_told_otherwise() {
        let mut host = StubHost::with_modules(3);
        for (module, logit) in [(0, 0.0), (2, 1.5)] {
            let metadata = &mut host.module_mut(module).unwrap().metadata;
            metadata.push(("polytropon.this".to_owned(), logit.to_string()));
        }
        let Ok(Plan::Fixed { picks, combine }) = plan(&mut host, &[0, 1, 2], &[("task", "this")])
        else {
            panic!()
        };
        assert_eq!(combine, Combine::AbMerge);
        assert_eq!(picks.iter().map(|pick| pick.module).collect::<Vec<_>>(), [0, 2]);
        let expected = normalised(&[Some(0.0), Some(1.5)]);
        require(&picks.iter().map(|pick| pick.weight).collect::<Vec<_>>(), &expected);
        assert!(host.definitions.is_empty(), "it needs no rows");
    }

    #[test]
    fn tasks_that_nobody_knows() {
        let mut host = StubHost::with_modules(1);
        assert_eq!(plan(&mut host, &[0], &[]), Err(RouteError::Abstain));
        for (name, value) in
            [("task", "this"), ("tasks", "this"), ("tasks", "a: b"), ("tasks", "a: b=inf")]
        {
            let parameters = [("task", "this"), (name, value)];
            let error = plan(&mut host, &[0], &parameters).unwrap_err();
            assert!(matches!(error, RouteError::InvalidParameter(e) if e.name == name));
        }
    }
}
