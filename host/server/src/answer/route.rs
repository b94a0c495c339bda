//! Names to a route: a model name, then the request's own router and adapters.

use polyskill_route::{AdapterWeight, Adapters, RouteSpec, RouterSpec, params};

use crate::service::Service;

/// The route of a request, with the part that an arm of an experiment is put on top of.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The route that the model name stands for.
    named: RouteSpec,
    /// The route that the request asks for.
    own: RouteSpec,
}

impl Service {
    /// The route that a model name stands for; `None` if nothing has this name.
    ///
    /// Names are looked up in this order: the base, a skill set, a module or its alias.
    /// `BASE:MODULE` is a module too. A module acts with weight 1.
    pub fn route(&self, model: &str) -> Option<RouteSpec> {
        if model == self.base_name {
            return Some(RouteSpec::default());
        }
        if let Some(set) = self.skill_sets.iter().find(|set| set.id == model) {
            return Some(set.route.clone());
        }
        let module = match model.split_once(':') {
            Some((base, module)) if base == self.base_name => module,
            Some(_) => return None,
            None => model,
        };
        let snapshot = self.composer.library().snapshot();
        let adapters = [(module.to_owned(), 1.0)].into_iter().collect();
        snapshot.get(module).map(|_| RouteSpec { router: None, adapters: Some(adapters) })
    }

    /// True where two names stand for one module, be it through an alias. Names of nothing are
    /// compared as texts.
    fn is_one_module(&self, a: &str, b: &str) -> bool {
        let snapshot = self.composer.library().snapshot();
        let name = |name: &str| snapshot.resolve(name).map(|(name, _)| name.to_owned());
        a == b || name(a).is_some_and(|a| name(b) == Some(a))
    }
}

impl Route {
    /// The route of a request whose model name stands for `named`, and that asks for `asked`.
    ///
    /// A module that is named acts, and is always on where there is a router. Of a skill set
    /// `router` and `adapters` replace the fields of their kind, and the rest stays.
    pub(crate) fn new(service: &Service, named: RouteSpec, asked: RouteSpec) -> Self {
        let adapters = match (named.deciding_router(), asked.adapters) {
            (Some(_), None) => named.adapters.clone(),
            (Some(_), adapters) => adapters,
            (None, adapters) => {
                let same = |a: &str, b: &str| service.is_one_module(a, b);
                Some(with_named(named.adapters(), adapters.unwrap_or_default(), same))
            }
        };
        let router = match asked.router {
            None => named.router.clone(),
            Some(router) => router.decides().then(|| over(&named, &router)),
        };
        let adapters = adapters.filter(|adapters| !adapters.0.is_empty());
        Self { named, own: RouteSpec { router, adapters } }
    }

    /// The route that answers outside of experiments.
    pub(crate) fn own(&self) -> &RouteSpec {
        &self.own
    }

    /// An arm on top of the model name's route. Of a skill set the arm takes over every part that
    /// it does not set itself; the request's own fields do not count.
    pub(crate) fn under(&self, arm: &RouteSpec) -> RouteSpec {
        let Some(router) = arm.deciding_router() else { return arm.clone() };
        let of_set = self.named.deciding_router().and(self.named.adapters.clone());
        let own = arm.adapters.clone().filter(|adapters| !adapters.0.is_empty());
        RouteSpec { router: Some(over(&self.named, router)), adapters: own.or(of_set) }
    }
}

/// The module that the model name stands for, then those of `adapters`, which may give it another weight.
fn with_named(
    named: &[AdapterWeight],
    adapters: Adapters,
    same: impl Fn(&str, &str) -> bool,
) -> Adapters {
    let mut all = named.to_vec();
    for adapter in adapters.0 {
        match all.iter_mut().find(|known| same(&known.name, &adapter.name)) {
            Some(known) => known.weight = adapter.weight,
            None => all.push(adapter),
        }
    }
    Adapters(all)
}

/// A router over that of a model name, if it stands for one.
///
/// A skill set's modules stay the candidates where `router` names none. Its parameters hold where
/// the router is the same, under those of `router`.
fn over(named: &RouteSpec, router: &RouterSpec) -> RouterSpec {
    let mut router = router.clone();
    let Some(set) = named.deciding_router() else { return router };
    if set.name == router.name {
        router.params = params::over(&set.params, &router.params);
    }
    if router.modules.is_empty() {
        router.modules.clone_from(&set.modules);
    }
    router
}
