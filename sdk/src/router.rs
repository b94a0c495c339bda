//! The router trait, what a router may ask of its host, and what it answers.

use crate::batch::{Batch, Decision};
use crate::experts::{ExpertLayer, ExpertProgram};
use crate::gate::{Combine, Program};
use crate::parameters::{ParameterError, Parameters};

/// A router plugin.
///
/// An instance is a cache, never a store: the host may discard it between any two calls and make a new
/// one, so the answer must depend on the arguments and the host's answers alone.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no router",
    label = "this type does not implement `polyskill_sdk::Router`",
    note = "a router has `init`, `descriptor` and `plan`; `polyskill plugin new` writes one to start from"
)]
pub trait Router: Sized + Send + 'static {
    /// Makes an instance from the configured parameters.
    ///
    /// # Errors
    /// A reason to refuse the configuration, shown to the operator.
    fn init(host: &mut dyn Host, parameters: &Parameters) -> Result<Self, String>;

    /// Name, version and declared properties.
    fn descriptor(&self) -> Descriptor;

    /// Called when modules came or went, before any request sees them.
    ///
    /// # Errors
    /// A reason why the router cannot work with this library, shown to the operator.
    fn library_changed(
        &mut self,
        host: &mut dyn Host,
        change: &LibraryChange,
    ) -> Result<(), String> {
        let _ = (host, change);
        Ok(())
    }

    /// Decides how a request is routed. Called once per request.
    ///
    /// # Errors
    /// See [`RouteError`].
    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError>;

    /// Decides which experts of a sparse base the tokens of a request get. Called once per request, before
    /// [`Router::plan`], where the base has `layers` with experts. Layers without a program keep the base's choice.
    ///
    /// # Errors
    /// [`RouteError::Abstain`], as by default, leaves it to the next router of the chain, and to the base after the last.
    fn plan_experts(
        &mut self,
        host: &mut dyn Host,
        request: &Request,
        layers: &[ExpertLayer],
    ) -> Result<Vec<ExpertProgram>, RouteError> {
        let _ = (host, request, layers);
        Err(RouteError::Abstain)
    }

    /// Decides rows, for programs that end with [`crate::gate::Op::Route`]. Called once per step and
    /// decision point (a site, or the first of those that share) for all rows of a plan, on an instance
    /// of its own: what a plan decided travels in [`Batch::arguments`].
    ///
    /// # Errors
    /// If no row can be decided; the rows then run without modules.
    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), RouteError> {
        let _ = (batch, decision);
        Err(RouteError::Failed("this router has no `route`".to_owned()))
    }
}

/// The host, as far as a router may ask it. No clock, no randomness, no I/O.
pub trait Host {
    /// Writes to the host's log.
    fn log(&mut self, level: Level, message: &str);
    /// The base model.
    fn model(&self) -> ModelInfo;
    /// The modules of the library. Indices hold for one call into the router.
    ///
    /// All of them are copied: where a few are looked at, ask for these with [`Host::module`], and where
    /// all are in every plan, keep what you need until [`Router::library_changed`] is called.
    fn modules(&self) -> Vec<ModuleInfo>;
    /// One module of the library.
    fn module(&self, module: u32) -> Option<ModuleInfo>;
    /// The sites at which a module acts, in their order; empty where there is no such module.
    fn sites(&self, module: u32) -> Vec<ModuleSite>;
    /// A weight of a module at a site, as f32.
    ///
    /// # Errors
    /// If the module has no such weight.
    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String>;
    /// A router artefact that came with a module, such as a trained gate.
    fn artefact(&self, module: u32, site: u32, name: &str) -> Option<Tensor>;
    /// The top right singular vector of a module's delta B·A at a site, `[inputs]`, unit length.
    ///
    /// # Errors
    /// If the module does not act at the site.
    fn singular_vector(
        &self,
        module: u32,
        site: u32,
        method: SvdMethod,
    ) -> Result<Vec<f32>, String>;
    /// True where this router has defined rows under this name for all sites of the module's
    /// generation.
    fn defined(&self, name: &str, module: u32) -> bool;
    /// Gives the row that [`crate::gate::Op::Linear`] multiplies with for a module at a site.
    ///
    /// # Errors
    /// If the module does not act at the site, the length is not the site's input size, or a value is not
    /// finite.
    fn define(&mut self, name: &str, module: u32, site: u32, row: Vec<f32>) -> Result<(), String>;
}

/// Log levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the usual levels")]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

/// Declared properties of a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Name, as in logs.
    pub name: String,
    /// The router's own version.
    pub version: String,
    /// True where a token's choice depends on its prefix alone.
    pub causal: bool,
}

/// The base model, as a router sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// SHA-256, hexadecimal.
    pub digest: String,
    /// Family name.
    pub family: String,
    /// Decoder layers.
    pub num_layers: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// All sites, ascending; a sparse layer lacks those of its feed-forward but one.
    pub sites: Vec<SiteInfo>,
}

impl ModelInfo {
    /// A site by its number; sparse layers lack some.
    pub fn site(&self, index: u32) -> Option<&SiteInfo> {
        let at = self.sites.binary_search_by_key(&index, |site| site.index);
        at.ok().map(|at| &self.sites[at])
    }
}

/// One adaptable projection.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteInfo {
    /// Number of the site.
    pub index: u32,
    /// Layer, from 0.
    pub layer: u32,
    /// `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj` or `down_proj`; in a sparse layer `mlp` stands for its
    /// experts.
    pub projection: String,
    /// Input features.
    pub inputs: u32,
    /// Output features.
    pub outputs: u32,
}

/// One module of the library.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModuleInfo {
    /// Index, valid for one call.
    pub index: u32,
    /// Name in the library.
    pub name: String,
    /// SHA-256 of configuration and weights, hexadecimal.
    pub generation: String,
    /// `lora`, ...
    pub kind: String,
    /// Tags of the module card.
    pub tags: Vec<String>,
    /// Other metadata of the module card.
    pub metadata: Vec<(String, String)>,
}

impl ModuleInfo {
    /// True for a module that acts as a whole or not at all: what stands before a sequence, and what says which experts are
    /// run. A pick of it has the weight 1; any other makes a plan unusable.
    pub fn acts_whole(&self) -> bool {
        matches!(self.kind.as_str(), "soft-prompt" | "kv-prefix" | crate::experts::POLICY_KIND)
    }
}

/// A module at a site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModuleSite {
    /// Site number.
    pub site: u32,
    /// Rank of the delta.
    pub rank: u32,
    /// Factor on B·A.
    pub scale: f32,
}

/// A row-major tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<u32>,
    /// Elements.
    pub values: Vec<f32>,
}

/// A weight of a LoRA module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A, `[rank, inputs]`.
    LoraA,
    /// B, `[outputs, rank]`.
    LoraB,
}

/// The method for a top right singular vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SvdMethod {
    /// Exact; the sign is arbitrary.
    Exact,
    /// Power iteration from torch's CPU `randn`, as in PEFT's Arrow (15 iterations).
    Power {
        /// Number of iterations.
        iterations: u32,
        /// Seed of the start vector.
        seed: u64,
    },
}

/// A change of the library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibraryChange {
    /// Indices of modules that came.
    pub added: Vec<u32>,
    /// Generations that went.
    pub removed: Vec<String>,
}

/// A request, as far as a router sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The request's parameters over the configured ones.
    pub parameters: Parameters,
    /// Modules that may be picked, ascending.
    pub candidates: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// The last user message, where the request has text.
    pub text: Option<String>,
    /// The same number for the same unit (user or conversation).
    pub bucket: u64,
}

impl Request {
    /// A request with these candidates and nothing else, for tests.
    pub fn for_candidates(candidates: &[u32]) -> Self {
        Self {
            parameters: Parameters::default(),
            candidates: candidates.to_vec(),
            prompt_tokens: 0,
            text: None,
            bucket: 0,
        }
    }
}

/// A module and its weight in a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// Module index.
    pub module: u32,
    /// Weight; any finite number, never renormalised.
    pub weight: f32,
}

/// A router's decision for one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// The same mixture for every row and site.
    Fixed {
        /// Modules with their weights; each module at most once.
        picks: Vec<Pick>,
        /// The way in which they combine where several act.
        combine: Combine,
    },
    /// Gate programs; each site is decided by the first that selects it.
    Gated(Vec<Program>),
    /// Only these of the candidates; the next router of the chain chooses among them.
    Narrowed(Vec<u32>),
}

impl Plan {
    /// The same weighted sum of modules' outputs for every row and site: [`Plan::Fixed`] with
    /// [`Combine::OutputSum`].
    pub fn output_sum(picks: impl IntoIterator<Item = Pick>) -> Self {
        Self::Fixed { picks: picks.into_iter().collect(), combine: Combine::OutputSum }
    }
}

/// A reason for which a router did not decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// Let the next router of the chain decide.
    Abstain,
    /// Something that this router needs is missing.
    NotReady(String),
    /// The request's fault.
    InvalidParameter(ParameterError),
    /// Anything else.
    Failed(String),
}

impl From<ParameterError> for RouteError {
    fn from(error: ParameterError) -> Self {
        Self::InvalidParameter(error)
    }
}

impl From<String> for RouteError {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}
