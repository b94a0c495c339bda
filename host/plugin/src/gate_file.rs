//! Gate files: routers as data, without code.
//!
//! ```toml
//! [parameters]                 # what a request may set, with defaults
//! top_k = 3
//!
//! [[define]]                   # rows that programs multiply with, one per module and site
//! name = "prototypes"
//! from = "singular-vector"     # or "artefact" with `artefact = "..."`
//!
//! [[program]]
//! ops = ["load-input", { linear = "prototypes" }, "abs", { top-k = "top_k" }, "softmax", "emit"]
//! ```
//!
//! A number of an op may be the name of a parameter. Plugins of the flat ABI answer with the same
//! `[[program]]` text.

use std::collections::BTreeMap;
use std::sync::Arc;

use polyskill_sdk::gate::{Combine, Op, Program, Share, SiteSelector};
use polyskill_sdk::runtime::{Call, Definition, Fault, LibraryView, LoadedRouter, Stepper};
use polyskill_sdk::{
    Descriptor, Host, LibraryChange, ModuleInfo, ParameterError, Parameters, Plan, Request,
    SvdMethod, Value,
};
use serde::Deserialize;

/// Definitions of a file at most: each makes a row for every module and site of a request, without a
/// deadline.
const MAX_DEFINITIONS: usize = 8;
/// Iterations of the power method at most.
const MAX_ITERATIONS: u32 = 100;

/// A gate file, read. Unknown keys are refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GateFile {
    /// Parameters that a request may set, with their defaults; all of them numbers.
    #[serde(default)]
    parameters: BTreeMap<String, f64>,
    /// Rows that are defined for candidates before a program runs.
    #[serde(default)]
    define: Vec<Define>,
    /// The programs. A site is decided by the first one that lists it.
    program: Vec<FileProgram>,
}

/// Source of the rows that a program's `linear` multiplies with, one per module and site.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case", deny_unknown_fields)]
enum Define {
    /// The top right singular vector of the module's delta; exact and of arbitrary sign, or by
    /// power iteration where `iterations` is set.
    SingularVector {
        /// Name of the rows, for `linear`.
        name: String,
        /// Iterations of the power method; 0 for the exact vector.
        #[serde(default)]
        iterations: u32,
        /// Seed of the power method's first vector.
        #[serde(default)]
        seed: u64,
    },
    /// An artefact that came with the module, which must have one at each of its sites.
    Artefact {
        /// Name of the rows, for `linear`.
        name: String,
        /// The artefact's name in the module.
        artefact: String,
        /// ε of a layer norm of the row; `None` leaves the row as it is.
        #[serde(default)]
        layer_norm: Option<f32>,
        /// True if the row is divided by the root of its length, as scores of attention are.
        #[serde(default)]
        over_sqrt_width: bool,
    },
}

/// One `[[program]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileProgram {
    /// Numbers of the sites that it decides; all without a list.
    #[serde(default)]
    sites: Option<Vec<u32>>,
    /// Scope in which one decision is reused.
    #[serde(default)]
    share: FileShare,
    /// The rule by which the picks of a row combine.
    #[serde(default)]
    combine: FileCombine,
    /// The steps, in order.
    ops: Vec<FileOp>,
}

/// Scope in which the decision of the first site is reused.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FileShare {
    /// Every site decides for itself.
    #[default]
    Site,
    /// Sites that read the same hidden state share a decision.
    Group,
    /// All sites of a layer share a decision.
    Layer,
}

/// The rule by which the picks of a row combine.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FileCombine {
    /// The weighted sum of the modules' outputs.
    #[default]
    OutputSum,
    /// The modules' A and B, each summed with the weights.
    AbMerge,
}

/// A number, or the name of a parameter that holds one.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Number {
    /// A number as it stands.
    Given(f64),
    /// The name of an entry of `[parameters]`.
    Parameter(String),
}

/// An op by its name in the text; see [`Op`] for the meaning of each.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FileOp {
    LoadInput,
    LayerNorm(Number),
    Linear(String),
    Abs,
    Affine {
        scale: Number,
        shift: Number,
    },
    Sigmoid,
    Relu,
    Softmax,
    TopK(Number),
    Threshold(Number),
    Renormalise(Number),
    Emit,
    #[serde(rename_all = "kebab-case")]
    Route {
        #[serde(default)]
        hidden: bool,
        #[serde(default)]
        arguments: Vec<f64>,
    },
}

/// Reads `[[program]]` text that needs no parameters, as plugins of the flat ABI answer with.
///
/// # Errors
/// If it is no gate file, defines rows, or a number of modules is not whole.
pub(crate) fn programs(text: &str) -> Result<Vec<Program>, String> {
    let file = parse(text)?;
    if !file.define.is_empty() {
        return Err("a plan holds programs alone; rows are given with `define`".to_owned());
    }
    file.programs(&Parameters::default()).map_err(|error| error.to_string())
}

/// Reads a gate file.
///
/// # Errors
/// If it is no TOML of this form, or its programs cannot be made with the parameters' defaults.
pub(crate) fn parse(text: &str) -> Result<GateFile, String> {
    let file: GateFile = toml::from_str(text).map_err(|error| error.to_string())?;
    if file.define.len() > MAX_DEFINITIONS {
        let found = file.define.len();
        return Err(format!("{found} definitions, expected at most {MAX_DEFINITIONS}"));
    }
    let iterations = file.define.iter().map(Define::iterations).max().unwrap_or(0);
    if iterations > MAX_ITERATIONS {
        return Err(format!("{iterations} iterations, expected at most {MAX_ITERATIONS}"));
    }
    // Every program must be sound with the defaults.
    file.programs(&Parameters::default()).map_err(|error| error.to_string())?;
    Ok(file)
}

impl GateFile {
    /// The programs with the numbers of these parameters. Whether their ops fit together is checked
    /// where they are compiled.
    ///
    /// # Errors
    /// If an op names a parameter without a default or with another value than a number, or a
    /// number of modules is not whole.
    fn programs(&self, parameters: &Parameters) -> Result<Vec<Program>, ParameterError> {
        let number = |number: &Number| match number {
            Number::Given(value) => Ok(*value),
            Number::Parameter(name) => {
                let default = self.parameters.get(name).ok_or_else(|| ParameterError {
                    name: name.clone(),
                    message: "an op names it, but [parameters] gives no default".to_owned(),
                })?;
                parameters.number(name, *default)
            }
        };
        let op = |op: &FileOp| {
            Ok(match op {
                FileOp::LoadInput => Op::LoadInput,
                FileOp::LayerNorm(epsilon) => Op::LayerNorm { epsilon: number(epsilon)? as f32 },
                FileOp::Linear(name) => Op::Linear { name: name.clone() },
                FileOp::Abs => Op::Abs,
                FileOp::Affine { scale, shift } => {
                    Op::Affine { scale: number(scale)? as f32, shift: number(shift)? as f32 }
                }
                FileOp::Sigmoid => Op::Sigmoid,
                FileOp::Relu => Op::Relu,
                FileOp::Softmax => Op::Softmax,
                FileOp::TopK(k) => Op::TopK { k: whole(number(k)?)? },
                FileOp::Threshold(least) => Op::Threshold { least: number(least)? as f32 },
                FileOp::Renormalise(epsilon) => {
                    Op::Renormalise { epsilon: number(epsilon)? as f32 }
                }
                FileOp::Emit => Op::Emit,
                FileOp::Route { hidden, arguments } => Op::Route {
                    hidden: *hidden,
                    arguments: arguments.iter().map(|&value| value as f32).collect(),
                },
            })
        };
        let program = |program: &FileProgram| {
            Ok(Program {
                sites: program.sites.clone().map_or(SiteSelector::All, SiteSelector::Listed),
                share: match program.share {
                    FileShare::Site => Share::Site,
                    FileShare::Group => Share::Group,
                    FileShare::Layer => Share::Layer,
                },
                combine: match program.combine {
                    FileCombine::OutputSum => Combine::OutputSum,
                    FileCombine::AbMerge => Combine::AbMerge,
                },
                ops: program.ops.iter().map(op).collect::<Result<_, ParameterError>>()?,
            })
        };
        self.program.iter().map(program).collect()
    }

    /// Defines the rows of one module at all of its sites, unless that was done before.
    fn define(&self, host: &mut dyn Host, module: &ModuleInfo) -> Result<(), String> {
        for define in &self.define {
            if host.defined(define.name(), module.index) {
                continue;
            }
            for at in host.sites(module.index) {
                let row = define.row(host, module, at.site)?;
                host.define(define.name(), module.index, at.site, row)?;
            }
        }
        Ok(())
    }
}

/// A number of modules: whole and at least 1.
fn whole(value: f64) -> Result<u32, ParameterError> {
    if value.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(&value) {
        return Ok(value as u32);
    }
    let message = format!("found {value}, expected a whole number from 1 on");
    Err(ParameterError { name: "top-k".to_owned(), message })
}

impl Define {
    /// Iterations of the power method; 0 for other sources.
    fn iterations(&self) -> u32 {
        match self {
            Self::SingularVector { iterations, .. } => *iterations,
            Self::Artefact { .. } => 0,
        }
    }

    /// Name of the rows.
    fn name(&self) -> &str {
        match self {
            Self::SingularVector { name, .. } | Self::Artefact { name, .. } => name,
        }
    }

    /// The row of one module at one site.
    fn row(&self, host: &dyn Host, module: &ModuleInfo, site: u32) -> Result<Vec<f32>, String> {
        match self {
            Self::SingularVector { iterations, seed, .. } => {
                let method = match *iterations {
                    0 => SvdMethod::Exact,
                    iterations => SvdMethod::Power { iterations, seed: *seed },
                };
                host.singular_vector(module.index, site, method)
            }
            Self::Artefact { artefact, layer_norm, over_sqrt_width, .. } => {
                let found = host.artefact(module.index, site, artefact).ok_or_else(|| {
                    format!("module `{}` has no artefact `{artefact}` at site {site}", module.name)
                })?;
                let mut row = found.values;
                if let Some(epsilon) = layer_norm {
                    polyskill_sdk::gate::layer_norm(&mut row, *epsilon);
                }
                if *over_sqrt_width {
                    let scale = 1.0 / (row.len() as f32).sqrt();
                    row.iter_mut().for_each(|value| *value *= scale);
                }
                Ok(row)
            }
        }
    }
}

/// A router that is a gate file.
///
/// It needs no sandbox: the engine runs its programs, and nothing else of it runs.
pub(crate) struct GateRouter {
    /// The file.
    file: GateFile,
    /// Name and version from the manifest.
    descriptor: Descriptor,
}

impl GateRouter {
    /// Checks the configured parameters. Each request's are checked again, with its plan.
    ///
    /// # Errors
    /// If a parameter is unknown or no number, or the programs cannot be made with them.
    pub(crate) fn new(
        file: GateFile,
        name: &str,
        version: &str,
        parameters: &Parameters,
    ) -> Result<Self, Fault> {
        let descriptor =
            Descriptor { name: name.to_owned(), version: version.to_owned(), causal: true };
        let router = Self { file, descriptor };
        router.checked(parameters).map_err(|error| Fault::Failed(error.to_string()))?;
        Ok(router)
    }

    /// The programs with these parameters, which must be numbers that the file names.
    fn checked(&self, parameters: &Parameters) -> Result<Vec<Program>, ParameterError> {
        let known: Vec<&str> = self.file.parameters.keys().map(String::as_str).collect();
        parameters.only(&known)?;
        if let Some((name, _)) = parameters.0.iter().find(|(_, v)| !matches!(v, Value::Number(_))) {
            let message = "expected a number".to_owned();
            return Err(ParameterError { name: name.clone(), message });
        }
        self.file.programs(parameters)
    }
}

impl LoadedRouter for GateRouter {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn library_changed(
        &mut self,
        _: &Arc<dyn LibraryView>,
        _: &LibraryChange,
    ) -> Result<Vec<Definition>, Fault> {
        // Rows are made for the modules that requests bring along: only candidates cost anything.
        Ok(Vec::new())
    }

    fn plan(
        &mut self,
        library: &Arc<dyn LibraryView>,
        request: &Request,
    ) -> Result<(Plan, Vec<Definition>), Fault> {
        let programs = self.checked(&request.parameters).map_err(Fault::InvalidParameter)?;
        let mut call = Call::new(&**library);
        // The view's own list: a copy for each candidate would cost the square of them.
        let modules = library.modules();
        for module in request.candidates.iter().filter_map(|&at| modules.get(at as usize)) {
            self.file.define(&mut call, module).map_err(Fault::NotReady)?;
        }
        Ok((Plan::Gated(programs), call.definitions))
    }

    fn stepper(&self, _: &Arc<dyn LibraryView>) -> Result<Box<dyn Stepper>, Fault> {
        Err(Fault::Failed("a gate file has no code, so `route` ends no program of it".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARROW: &str = r#"
        [parameters]
        top_k = 3
        [[define]]
        name = "p"
        from = "singular-vector"
        [[program]]
        share = "group"
        ops = ["load-input", { linear = "p" }, "abs", { top-k = "top_k" }, "softmax", "emit"]
    "#;

    #[test]
    fn a_file_becomes_programs() {
        let file = parse(ARROW).unwrap();
        let with = |k| Parameters(vec![("top_k".to_owned(), Value::Number(k))]);
        let programs = file.programs(&with(2.0)).unwrap();
        assert_eq!(programs[0].share, Share::Group);
        assert_eq!(programs[0].ops[3], Op::TopK { k: 2 });
        assert!(file.programs(&with(1.5)).is_err());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "missing field `program`"),
            ("[[program]]\nops = [\"lod-input\"]", "lod-input"),
            ("[[program]]\nops = [{ top-k = \"k\" }]", "`k`"),
            ("[[program]]\nops = []\nsides = [1]", "sides"),
            ("[[define]]\nname = \"p\"\nfrom = \"thin air\"\n[[program]]\nops = []", "thin air"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn numbers_survive_the_text() {
        let value = 0.1_f32;
        let text = format!("[[program]]\nops = [{{ threshold = {:?} }}]", f64::from(value));
        assert_eq!(programs(&text).unwrap()[0].ops, [Op::Threshold { least: value }]);
    }
}
