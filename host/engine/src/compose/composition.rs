//! The identity of what answers a request: base, modules, router and plan.

use std::collections::BTreeMap;
use std::sync::Arc;

use polyskill_adapters::apply::Combine;
use polyskill_adapters::edits::Point;
use polyskill_adapters::{Generation, Lease, Module, Weights};

use crate::hooks::expert_choice::ExpertPlan;
use crate::hooks::gates::Gates;
use crate::routers::health::OnFault;
use crate::routers::version::RouterVersion;

/// A composition, pinned from admission to the end of a request.
#[derive(Debug)]
pub struct Composition {
    pub(crate) digest: Generation,
    pub(crate) modules: Vec<NamedModule>,
    /// The modules' weights, in the same order.
    pub(crate) leases: Vec<Lease>,
    pub(crate) plan: Plan,
    /// Indices into `modules` of those that act on every row beside the plan, with weights.
    pub(crate) always_on: Vec<(u32, f32)>,
    pub(crate) router: Option<RouterIdentity>,
    /// The version of the router that made the plan: it decides rows, and is pinned by this.
    pub(crate) slot: Option<Arc<RouterVersion>>,
    pub(crate) fallback: Option<String>,
    /// What keys and values depend on beside tokens; `None` where they must not be shared.
    pub(crate) cache_identity: Option<Generation>,
    pub(crate) beyond: Beyond,
    /// Which experts of a sparse base its rows get.
    pub(crate) experts: ExpertPlan,
    /// Whether a module has feed-forwards of its own.
    pub(crate) has_feed_forwards: bool,
}

/// What a mixture does beyond linears.
#[derive(Debug, Default)]
pub(crate) struct Beyond {
    /// Modules whose keys and values come before the sequence, in order.
    pub(crate) prefixes: Vec<u32>,
    /// Modules whose embeddings follow them.
    pub(crate) prompts: Vec<u32>,
    pub(crate) num_prefix: usize,
    pub(crate) num_prompt: usize,
    /// Whether embeddings of tokens change.
    pub(crate) embeds: bool,
    /// Whether the head changes.
    pub(crate) scores: bool,
    /// Edits by point and layer, in the order of the request.
    pub(crate) edits: BTreeMap<(Point, usize), Vec<WeightedEdit>>,
    /// Whether what happens at a token depends on where the prompt ends.
    pub(crate) at_prompt_end: bool,
}

/// A module, its weight, and which of its edits.
pub(crate) type WeightedEdit = (u32, f32, usize);

impl Beyond {
    /// Collects it from a mixture's weights.
    pub(crate) fn of<'a>(picks: impl Iterator<Item = &'a (u32, f32)>, leases: &[Lease]) -> Self {
        let mut beyond = Self::default();
        for &(module, weight) in picks {
            let Some(weights) = leases.get(module as usize) else { continue };
            if let Some(prefix) = &weights.prefix {
                beyond.prefixes.push(module);
                beyond.num_prefix += prefix.num_tokens;
            }
            if let Some(prompt) = &weights.prompt {
                beyond.prompts.push(module);
                beyond.num_prompt += prompt.num_tokens;
            }
            beyond.embeds |= weights.tokens.is_some() || weights.embedding.is_some();
            beyond.scores |= weights.head.is_some()
                || weights.own_head.is_some()
                || weights.head_tokens.is_some();
            for (index, edit) in weights.edits.iter().enumerate() {
                let place = beyond.edits.entry((edit.point, edit.layer)).or_default();
                place.push((module, weight, index));
            }
            beyond.at_prompt_end |= weights.shape().edits_at_prompt_end;
        }
        beyond
    }

    /// Positions before the sequence.
    pub(crate) fn start_len(&self) -> usize {
        self.num_prefix + self.num_prompt
    }
}

/// A module that a composition may use.
#[derive(Clone, Debug)]
pub struct NamedModule {
    /// The name under which it was found.
    pub name: String,
    /// The generation.
    pub module: Arc<Module>,
}

/// The router that made the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterIdentity {
    /// Name in the configuration.
    pub name: String,
    /// Digest of its code.
    pub digest: String,
}

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
    /// Digest of base, module generations, router and plan.
    pub fn digest(&self) -> Generation {
        self.digest
    }

    /// Positions that modules put before the sequence: keys and values, then embeddings.
    pub fn num_virtual_tokens(&self) -> usize {
        self.beyond.start_len()
    }

    /// The weights of a module, by its index.
    pub(crate) fn weights(&self, module: u32) -> Option<&Weights> {
        self.leases.get(module as usize).map(|lease| &**lease)
    }

    /// Modules that act on every row beside what the router picks, with their weights.
    pub fn always_on(&self) -> impl Iterator<Item = (&NamedModule, f32)> {
        let lease =
            |&(module, weight): &(u32, f32)| Some((self.modules.get(module as usize)?, weight));
        self.always_on.iter().filter_map(lease)
    }

    /// The weights of the modules that act on every row, with their factors.
    pub(crate) fn mixture(&self) -> impl Iterator<Item = (&Lease, f32)> {
        let lease =
            |(module, weight): &(u32, f32)| Some((self.leases.get(*module as usize)?, *weight));
        self.on_every_row().filter_map(lease)
    }

    /// Modules and weights that act on every row.
    pub(crate) fn on_every_row(&self) -> impl Iterator<Item = &(u32, f32)> {
        self.always_on.iter().chain(self.plan.fixed_picks())
    }

    /// The modules that may act, by the indices used in traces.
    pub fn modules(&self) -> &[NamedModule] {
        &self.modules
    }

    /// The router, if one decided.
    pub fn router(&self) -> Option<&RouterIdentity> {
        self.router.as_ref()
    }

    /// Whether rows that the router leaves undecided end the request.
    pub(crate) fn fails_on_fault(&self) -> bool {
        let policy = self.slot.as_ref().map(|slot| slot.health.policy().on_fault);
        policy == Some(OnFault::FailRequest)
    }

    /// Why the router last left rows undecided, where it decides rows.
    pub fn row_failure(&self) -> Option<String> {
        let health = &self.slot.as_ref()?.health;
        health.last_invalid().or_else(|| health.last_fault())
    }

    /// Why the base answers instead of the assigned router, if it does.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }
}
