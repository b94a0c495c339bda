//! A composition in the making: modules and plan, then its identity, then its weights.

use std::sync::Arc;

use polyskill_adapters::apply::Combine;
use polyskill_adapters::{Generation, Lease};
use polyskill_model::ModelConfig;

use super::Composer;
use super::expert_plans::RoutedExperts;
use super::selection::ComposeError;
use crate::compose::composition::{Composition, NamedModule, Plan, RequestParts, RouterIdentity};
use crate::hooks::expert_programs::ExpertPlan;
use crate::identity::Fields;
use crate::routers::version::RouterVersion;

/// Compositions in the cache above which those that no request uses are swept.
const MAX_UNUSED: usize = 1_024;

/// A composition before its weights are in memory. The default is the base alone.
#[derive(Debug)]
pub(super) struct Draft {
    /// The modules of the plan first, then those that are always on, then policies.
    pub(super) modules: Vec<NamedModule>,
    /// The plan, with indices into `modules`.
    pub(super) plan: Plan,
    /// The fields of the plan that the digest covers.
    pub(super) plan_fields: Fields,
    /// Modules that are always on: indices into `modules` with weights.
    pub(super) always_on: Vec<(u32, f32)>,
    /// The router that was asked, for the identity and for reports.
    pub(super) router: Option<RouterIdentity>,
    /// The version that made the plan, and decides rows where the plan leaves them to it.
    pub(super) version: Option<Arc<RouterVersion>>,
    /// The choice among the experts of a sparse base, by layer.
    pub(super) experts: ExpertPlan,
    /// The fields of a router's choice of experts; policies need none, as modules are in the
    /// digest.
    pub(super) expert_fields: Option<Fields>,
    /// The reason for which the base answers in place of the router.
    pub(super) fallback: Option<String>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            modules: Vec::new(),
            plan: Plan::Base,
            plan_fields: Fields::of("base"),
            always_on: Vec::new(),
            router: None,
            version: None,
            experts: ExpertPlan::default(),
            expert_fields: None,
            fallback: None,
        }
    }
}

impl Draft {
    /// Adds modules that are always on: they act on every row, whatever is picked.
    pub(super) fn with_always_on(mut self, modules: Vec<(NamedModule, f32)>) -> Self {
        self.always_on = self.add(modules);
        self
    }

    /// One mixture for every row and site: the weighted sum of the modules' outputs. Without
    /// modules it stays the base.
    pub(super) fn with_mixture(mut self, modules: Vec<(NamedModule, f32)>) -> Self {
        if modules.is_empty() {
            return self;
        }
        let picks = self.add(modules);
        self.fixed(picks, Combine::OutputSum)
    }

    /// One mixture of modules that are in the draft already; `picks` are indices into `modules`
    /// with weights.
    pub(super) fn fixed(mut self, picks: Vec<(u32, f32)>, combine: Combine) -> Self {
        self.plan_fields = Fields::of("fixed");
        self.plan_fields.list(&picks).value(&combine);
        self.plan = Plan::Fixed { picks, combine };
        self
    }

    /// A router's choice of experts, and the policies whose own experts it means, which join the
    /// modules.
    pub(super) fn with_experts(mut self, experts: Option<&RoutedExperts>) -> Self {
        if let Some(experts) = experts {
            self.expert_fields = Some(experts.fields());
            self.experts = experts.attached(&mut self.modules);
        }
        self
    }

    /// The policies of modules that act on every row, for layers whose experts no router chose.
    fn with_policies(mut self, config: &ModelConfig) -> Self {
        let acting = self.always_on.iter().chain(self.plan.fixed_picks());
        self.experts = self.experts.with_policies(acting, &self.modules, config);
        self
    }

    /// Appends modules and returns their indices with their weights.
    fn add(&mut self, weighted: Vec<(NamedModule, f32)>) -> Vec<(u32, f32)> {
        let first = self.modules.len() as u32;
        let (modules, weights): (Vec<_>, Vec<_>) = weighted.into_iter().unzip();
        self.modules.extend(modules);
        (first..).zip(weights).collect()
    }

    /// The identity of the whole composition: `base` is the base's digest.
    ///
    /// A draft that fell back has the digest of one without a router.
    fn digest(&self, base: &str) -> Generation {
        let mut fields = Fields::of("composition");
        // The base answers alike, whichever router failed.
        let router = self.router.as_ref().filter(|_| self.fallback.is_none());
        fields.text(base).text(router.map_or("", |router| &router.digest));
        fields.bytes(&self.plan_fields.digest().0).list(&self.always_on);
        let experts = self.expert_fields.as_ref().map(Fields::digest);
        fields.bytes(experts.as_ref().map_or(&[], |digest| &digest.0));
        modules_into(&mut fields, &self.modules);
        fields.digest()
    }

    /// The identity of everything but tokens that keys and values depend on: generations and
    /// weights of a fixed mixture; the whole digest, with editions, where programs decide.
    ///
    /// `None` where a router decides rows in its own code and does not say that its choice depends
    /// on the tokens before alone.
    fn cache_identity(&self, base: &str, digest: Generation) -> Option<Generation> {
        let causal = self.version.as_ref().is_none_or(|version| version.is_causal());
        match &self.plan {
            // Programs are in the digest, not in the mixture's identity.
            Plan::Fixed { .. } | Plan::Base if !self.experts.is_empty() => Some(digest),
            Plan::Gated(gates) => (causal || !gates.any_routed()).then_some(digest),
            Plan::Fixed { picks, combine } => Some(self.mixture_identity(base, picks, *combine)),
            Plan::Base => Some(self.mixture_identity(base, &[], Combine::OutputSum)),
        }
    }

    /// Identity of a fixed mixture: generations and weights in the order in which they act, as
    /// edits depend on it. Names and cards are not part of it, so a renamed module finds its cache.
    fn mixture_identity(&self, base: &str, picks: &[(u32, f32)], combine: Combine) -> Generation {
        let mut fields = Fields::of("mixture");
        fields.text(base).value(&combine);
        // Where all are summed alike, it does not matter who chose them.
        let apart = if combine == Combine::OutputSum { 0 } else { self.always_on.len() };
        fields.number(apart as u64);
        for (module, weight) in self.always_on.iter().chain(picks) {
            fields.bytes(&self.modules[*module as usize].module.generation().0).value(weight);
        }
        fields.digest()
    }

    /// The composition, with the weights of its modules in the same order as they.
    fn with_weights(
        self,
        digest: Generation,
        cache_identity: Option<Generation>,
        leases: Vec<Lease>,
    ) -> Composition {
        let acting = self.always_on.iter().chain(self.plan.fixed_picks());
        Composition {
            digest,
            parts: RequestParts::of(acting, &leases),
            has_feed_forwards: leases.iter().any(|lease| lease.has_feed_forwards()),
            modules: self.modules,
            leases,
            plan: self.plan,
            always_on: self.always_on,
            router: self.router,
            version: self.version,
            fallback: self.fallback,
            cache_identity,
            experts: self.experts,
        }
    }
}

/// Writes editions of modules, since routers derive from cards and artefacts too, and their names,
/// which traces and replies carry.
pub(super) fn modules_into(fields: &mut Fields, modules: &[NamedModule]) {
    fields.number(modules.len() as u64);
    for named in modules {
        fields.bytes(&named.module.edition().0).text(&named.name);
    }
}

impl Composer {
    /// Brings the weights into memory and makes the composition. Waits for room.
    ///
    /// Also where the same composition serves already: a request that waits for room must not be
    /// overtaken for ever.
    pub(super) fn ready(&self, draft: Draft) -> Result<Arc<Composition>, ComposeError> {
        let draft = draft.with_policies(&self.config);
        let modules = draft.modules.iter().map(|named| &named.module);
        let leases = self.library.lease(modules).map_err(ComposeError::Weights)?;
        let base = &self.views.model().digest;
        let digest = draft.digest(base);
        let identity = draft.cache_identity(base, digest);
        // A reason belongs to one request.
        if draft.fallback.is_some() {
            return Ok(Arc::new(draft.with_weights(digest, identity, leases)));
        }
        Ok(self.shared(digest, || draft.with_weights(digest, identity, leases)))
    }

    /// The composition of this digest, made only where no request uses it. Callers with the same
    /// digest wait for the one that makes it.
    fn shared(&self, digest: Generation, make: impl FnOnce() -> Composition) -> Arc<Composition> {
        if self.cache.len() > MAX_UNUSED {
            self.cache.retain(|_, composition| composition.strong_count() > 0);
        }
        let mut entry = self.cache.entry(digest).or_default();
        if let Some(known) = entry.upgrade() {
            return known;
        }
        let composition = Arc::new(make());
        *entry = Arc::downgrade(&composition);
        composition
    }
}
