//! The identity of what answers a request: base, modules, router and plan.

use std::sync::Arc;

use polyskill_adapters::apply::Combine;
use polyskill_adapters::{Generation, Module};

use crate::gates::Gates;
use crate::health::OnFault;
use crate::router_slot::RouterSlot;

/// A composition, pinned from admission to the end of a request.
#[derive(Debug)]
pub struct Composition {
    pub(crate) digest: Generation,
    pub(crate) modules: Vec<LeasedModule>,
    pub(crate) plan: Plan,
    pub(crate) router: Option<RouterIdentity>,
    /// The version of the router that made the plan: it decides rows, and is pinned by this.
    pub(crate) slot: Option<Arc<RouterSlot>>,
    pub(crate) fallback: Option<String>,
}

/// A module that a composition may use; holding it keeps its bytes.
#[derive(Clone, Debug)]
pub struct LeasedModule {
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
    Gated(Gates),
}

impl Composition {
    /// Digest of base, module generations, router and plan.
    pub fn digest(&self) -> Generation {
        self.digest
    }

    /// The modules that may act, by the indices used in traces.
    pub fn modules(&self) -> &[LeasedModule] {
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

    /// Why the base answers instead of the assigned router, if it does.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }
}
