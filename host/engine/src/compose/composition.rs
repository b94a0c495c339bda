//! The identity of the composition that answers a request: base, modules, router and plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use polyskill_adapters::apply::Combine;
use polyskill_adapters::edits::{Point, Positions};
use polyskill_adapters::parts::Part;
use polyskill_adapters::{Generation, Lease, Module, Weights};

use crate::hooks::expert_programs::ExpertPlan;
use crate::hooks::gates::Gates;
use crate::routers::health::OnFault;
use crate::routers::version::RouterVersion;

/// A composition, pinned from admission to the end of a request.
///
/// While somebody holds it, the weights of its modules stay in memory and the version of its router
/// stays loaded. It never changes; requests with an equal one share it.
#[derive(Debug)]
pub struct Composition {
    /// Hash of base, modules, router and plan.
    pub(crate) digest: Generation,
    /// Modules that may act: the router's candidates or picks, those that are always on, and
    /// policies that bring experts. Indices in picks and traces point here.
    pub(crate) modules: Vec<NamedModule>,
    /// The modules' weights, in the same order.
    pub(crate) leases: Vec<Lease>,
    /// The picks of rows, or the programs that make them.
    pub(crate) plan: Plan,
    /// Modules that are always on: indices into `modules` with weights. They act on every row,
    /// whatever the plan picks.
    pub(crate) always_on: Vec<(u32, f32)>,
    /// The router that was asked; `None` where the request named its modules, or the base.
    pub(crate) router: Option<RouterIdentity>,
    /// The version of the router that made the plan: it decides rows, and is pinned by this. `None`
    /// where no router planned.
    pub(crate) version: Option<Arc<RouterVersion>>,
    /// The reason for which the base answers in place of the router.
    pub(crate) fallback: Option<String>,
    /// Identity of everything but tokens that keys and values depend on; `None` where they must not
    /// be shared between requests.
    pub(crate) cache_identity: Option<Generation>,
    /// The parts of modules that belong to whole requests.
    pub(crate) parts: RequestParts,
    /// The choice among the experts of a sparse base for all rows of the request.
    pub(crate) experts: ExpertPlan,
    /// True where a module has feed-forwards of its own.
    pub(crate) has_feed_forwards: bool,
}

/// The parts of a mixture that act elsewhere than at linears. They belong to whole requests, so
/// they come from modules that act on every row, never from picks per row.
#[derive(Debug, Default)]
pub(crate) struct RequestParts {
    /// Modules whose keys and values come before the sequence, in order.
    pub(crate) prefixes: Vec<u32>,
    /// Modules whose soft prompts follow these, in order.
    pub(crate) prompts: Vec<u32>,
    /// Positions of all `prefixes`.
    pub(crate) num_prefix: usize,
    /// Positions of all `prompts`.
    pub(crate) num_prompt: usize,
    /// True where embeddings of tokens change.
    pub(crate) embeds: bool,
    /// True where the head changes.
    pub(crate) scores: bool,
    /// Edits by point and layer, in the order in which their modules act.
    pub(crate) edits: BTreeMap<(Point, usize), Vec<WeightedEdit>>,
    /// True where an edit depends on where the prompt ends: such a token's keys and values are not
    /// those of the same token inside a longer prompt.
    pub(crate) at_prompt_end: bool,
}

/// A module's index, its weight, and the index of one of its edits.
pub(crate) type WeightedEdit = (u32, f32, usize);

impl RequestParts {
    /// Collects the parts from the weights of a mixture, in the order of `picks`. `leases` has the
    /// weights by module index.
    pub(crate) fn of<'a>(picks: impl Iterator<Item = &'a (u32, f32)>, leases: &[Lease]) -> Self {
        let mut parts = Self::default();
        for &(module, weight) in picks {
            let Some(weights) = leases.get(module as usize) else { continue };
            let mut edits = 0;
            for part in weights.parts() {
                match part {
                    Part::Prefix(prefix) => {
                        parts.prefixes.push(module);
                        parts.num_prefix += prefix.num_tokens;
                    }
                    Part::Prompt(prompt) => {
                        parts.prompts.push(module);
                        parts.num_prompt += prompt.num_tokens;
                    }
                    Part::Tokens(_) | Part::Embedding(_) => parts.embeds = true,
                    Part::Head(_) | Part::OwnHead(_) | Part::HeadTokens(_) => parts.scores = true,
                    Part::Edit(edit) => {
                        let place = parts.edits.entry((edit.point, edit.layer)).or_default();
                        place.push((module, weight, edits));
                        edits += 1;
                        parts.at_prompt_end |= edit.positions != Positions::All;
                    }
                    // These act at experts and feed-forwards, which ask for them there.
                    Part::ExpertLoras(_) | Part::Policy(_) | Part::FeedForwards(_) => {}
                }
            }
        }
        parts
    }

    /// Positions that come before the prompt.
    pub(crate) fn start_len(&self) -> usize {
        self.num_prefix + self.num_prompt
    }
}

/// A module that a composition may use.
#[derive(Clone, Debug)]
pub struct NamedModule {
    /// The name under which it was found; one module may be loaded under several.
    pub name: String,
    /// The module itself, of one generation: a reload under the same name does not change it.
    pub module: Arc<Module>,
}

/// The router, or the chain of routers, that made the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterIdentity {
    /// Name in the configuration; for a chain, the names as the request gave them.
    pub name: String,
    /// Digest of its code; for a chain, a hash over the digests of those that were asked.
    pub digest: String,
}

/// The picks of a composition's rows, beyond the modules that are always on.
#[derive(Debug)]
pub(crate) enum Plan {
    /// The base model alone.
    Base,
    /// One mixture for every row and site: indices into `modules` with weights.
    Fixed { picks: Vec<(u32, f32)>, combine: Combine },
    /// Programs decide per row and site.
    Gated(Arc<Gates>),
}

impl Plan {
    /// The mixture that acts on every row; empty where rows are decided one by one.
    pub(crate) fn fixed_picks(&self) -> &[(u32, f32)] {
        match self {
            Self::Fixed { picks, .. } => picks,
            Self::Base | Self::Gated(_) => &[],
        }
    }
}

impl Composition {
    /// Digest of base, module editions and names, router and plan. It is stable across processes.
    pub fn digest(&self) -> Generation {
        self.digest
    }

    /// Positions that modules put before the prompt: keys and values first, then embeddings. They
    /// take room in the context and in the KV cache as tokens do.
    pub fn num_virtual_tokens(&self) -> usize {
        self.parts.start_len()
    }

    /// The weights of a module, by its index; `None` beyond the last.
    pub(crate) fn weights(&self, module: u32) -> Option<&Weights> {
        self.leases.get(module as usize).map(|lease| &**lease)
    }

    /// The modules that are always on, with their weights.
    pub fn always_on(&self) -> impl Iterator<Item = (&NamedModule, f32)> {
        let lease =
            |&(module, weight): &(u32, f32)| Some((self.modules.get(module as usize)?, weight));
        self.always_on.iter().filter_map(lease)
    }

    /// The weights of the modules that act on every row, with their factors: those that are always
    /// on, then those of a fixed plan.
    pub(crate) fn mixture(&self) -> impl Iterator<Item = (&Lease, f32)> {
        let lease =
            |(module, weight): &(u32, f32)| Some((self.leases.get(*module as usize)?, *weight));
        self.on_every_row().filter_map(lease)
    }

    /// Modules and weights that act on every row: those that are always on, then those of a fixed
    /// plan.
    pub(crate) fn on_every_row(&self) -> impl Iterator<Item = &(u32, f32)> {
        self.always_on.iter().chain(self.plan.fixed_picks())
    }

    /// The modules that may act, by the indices used in picks and traces.
    pub fn modules(&self) -> &[NamedModule] {
        &self.modules
    }

    /// The router that was asked; `None` where the request named its modules, or the base.
    pub fn router(&self) -> Option<&RouterIdentity> {
        self.router.as_ref()
    }

    /// True where a row that the router leaves undecided ends the request with an error.
    pub(crate) fn fails_on_fault(&self) -> bool {
        let policy = self.version.as_ref().map(|version| version.health.policy().on_fault);
        policy == Some(OnFault::FailRequest)
    }

    /// The class of the reason for which the router left rows undecided; `None` without a router that
    /// planned. The router's own words are for the operator alone, at `/admin/routers`: they may quote
    /// another request.
    pub fn row_failure(&self) -> Option<&'static str> {
        let health = &self.version.as_ref()?.health;
        Some(match (health.last_invalid(), health.last_fault()) {
            (Some(_), _) => "the router's answers for these rows were not usable",
            (None, Some(_)) => "the router failed at these rows",
            (None, None) => "the scores of these rows were not usable",
        })
    }

    /// The reason for which the base answers in place of the router; `None` where it does not.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }
}
