//! Names to a selection: a model name, then the request's own adapters, then its router.

use polyskill_engine::{RouterRequest, Selection};

use super::request::PromptInput;
use crate::config::parameters;
use crate::service::Service;

/// The selection of a request, with the parts that an arm of an experiment is put on top of.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    /// The selection that the model name stands for.
    named: Selection,
    /// The selection that the request asks for.
    own: Selection,
    /// A hash of the request's unit, for routers that split traffic.
    bucket: u64,
}

/// The request's own fields of routing, which replace parts of the model name's selection.
#[derive(Clone, Debug, Default)]
pub(crate) struct RouteFields {
    /// Modules by name and weight, from `adapters`; `None` where the field is missing.
    pub(crate) adapters: Option<Vec<(String, f32)>>,
    /// The router, from `router`.
    pub(crate) router: RouterField,
}

/// The field `router`.
#[derive(Clone, Debug, Default)]
pub(crate) enum RouterField {
    /// The field is missing: the model name's router, if it has one.
    #[default]
    Unset,
    /// No router, from `none`: modules act by their weights alone.
    None,
    /// This router, or chain of routers.
    Router(RouterRequest),
}

impl Service {
    /// The selection that a model name stands for; `None` if nothing has this name.
    ///
    /// Names are looked up in this order: the base, a skill set, a module or its alias.
    /// `BASE:MODULE` is a module too. A module acts with weight 1.
    pub fn selection(&self, model: &str) -> Option<Selection> {
        if model == self.base_name {
            return Some(Selection::Base);
        }
        if let Some(set) = self.skill_sets.iter().find(|set| set.id == model) {
            return Some(Selection::Routed(RouterRequest {
                router: set.router.clone(),
                parameters: parameters(&set.params).unwrap_or_default(),
                modules: set.modules.clone(),
                always_on: set
                    .adapters
                    .iter()
                    .map(|(name, weight)| (name.clone(), *weight))
                    .collect(),
                ..RouterRequest::default()
            }));
        }
        let module = match model.split_once(':') {
            Some((base, module)) if base == self.base_name => module,
            Some(_) => return None,
            None => model,
        };
        let snapshot = self.composer.library().snapshot();
        snapshot.get(module).map(|_| Selection::Weighted(vec![(module.to_owned(), 1.0)]))
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
    /// The route of a request whose model name stands for `named`.
    ///
    /// A module that is named acts, and is always on where there is a router. Of a skill set
    /// `router` and `adapters` replace the fields of their kind, and the rest stays.
    pub(crate) fn new(
        service: &Service,
        named: Selection,
        fields: RouteFields,
        bucket: u64,
    ) -> Self {
        let RouteFields { adapters, router } = fields;
        let acting = match (&named, adapters) {
            (Selection::Base, adapters) => adapters.unwrap_or_default(),
            (Selection::Weighted(modules), adapters) => {
                let same = |a: &str, b: &str| service.is_one_module(a, b);
                with_named(modules.clone(), adapters.unwrap_or_default(), same)
            }
            (Selection::Routed(set), adapters) => adapters.unwrap_or_else(|| set.always_on.clone()),
        };
        let own = match (router, &named) {
            (RouterField::None, _) => weighted(acting),
            (RouterField::Router(router), named) => {
                Selection::Routed(RouterRequest { always_on: acting, ..over(named, router) })
            }
            (RouterField::Unset, Selection::Routed(set)) => {
                Selection::Routed(RouterRequest { always_on: acting, ..set.clone() })
            }
            (RouterField::Unset, _) => weighted(acting),
        };
        Self { named, own, bucket }
    }

    /// The selection that answers a prompt, outside of experiments.
    pub(crate) fn selection(&self, prompt: &PromptInput) -> Selection {
        self.told(self.own.clone(), prompt)
    }

    /// An arm on top of the model name's selection. Of a skill set with the same router, the arm
    /// takes over every part that it does not set itself; the request's own fields do not count.
    pub(crate) fn arm(&self, arm: Selection, prompt: &PromptInput) -> Selection {
        let arm = match arm {
            Selection::Routed(router) => {
                let always_on = router.always_on.clone();
                let mut router = over(&self.named, router);
                if !always_on.is_empty() {
                    router.always_on = always_on;
                }
                Selection::Routed(router)
            }
            arm => arm,
        };
        self.told(arm, prompt)
    }

    /// Tells a router of the prompt: its length, its text and the bucket.
    fn told(&self, mut selection: Selection, prompt: &PromptInput) -> Selection {
        if let Selection::Routed(router) = &mut selection {
            router.prompt_tokens = prompt.tokens.len();
            router.text.clone_from(&prompt.text);
            router.bucket = self.bucket;
        }
        selection
    }
}

/// The module that the model name stands for, then those of `adapters`, which may give it another weight.
fn with_named(
    mut named: Vec<(String, f32)>,
    adapters: Vec<(String, f32)>,
    same: impl Fn(&str, &str) -> bool,
) -> Vec<(String, f32)> {
    for (name, weight) in adapters {
        match named.iter_mut().find(|(known, _)| same(known, &name)) {
            Some((_, known)) => *known = weight,
            None => named.push((name, weight)),
        }
    }
    named
}

/// Modules by weight, or the base where there are none.
fn weighted(modules: Vec<(String, f32)>) -> Selection {
    if modules.is_empty() { Selection::Base } else { Selection::Weighted(modules) }
}

/// A router over the selection of a model name.
///
/// A skill set's modules stay the candidates where `router` names none, and its modules that are
/// always on stay in any case. Its parameters hold where the router is the same, under those of
/// `router`.
fn over(named: &Selection, mut router: RouterRequest) -> RouterRequest {
    let Selection::Routed(set) = named else { return router };
    if set.router == router.router {
        let mut parameters = set.parameters.clone();
        parameters.0.retain(|(name, _)| router.parameters.get(name).is_none());
        parameters.0.append(&mut router.parameters.0);
        router.parameters = parameters;
    }
    if router.modules.is_empty() {
        router.modules.clone_from(&set.modules);
    }
    router.always_on.clone_from(&set.always_on);
    router
}
