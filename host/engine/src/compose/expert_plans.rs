//! Asking routers for the experts of a sparse base.

use std::time::Instant;

use polyskill_adapters::Snapshot;
use polyskill_model::ModelConfig;
use polyskill_sdk::experts::ExpertProgram;
use polyskill_sdk::runtime::Fault;

use super::Composer;
use super::ask::Question;
use super::chain::{as_given, count, offered, refused, request_for};
use super::selection::ComposeError;
use super::versions::Link;
use crate::compose::composition::NamedModule;
use crate::hooks::expert_programs::ExpertPlan;
use crate::identity::Fields;
use crate::routers::health::Standing;
use crate::routers::version::RouterVersion;

/// The experts that a router chose for a request.
pub(super) struct RoutedExperts {
    /// The programs by layer; modules in it are indices into `policies`.
    plan: ExpertPlan,
    /// The policies whose own experts the programs mean.
    policies: Vec<NamedModule>,
    /// The router's digest and its programs.
    fields: Fields,
}

impl RoutedExperts {
    /// Checks the programs of a router against the base and the snapshot. The reason is given for
    /// the first that breaks a rule.
    fn new(
        programs: &[ExpertProgram],
        version: &RouterVersion,
        snapshot: &Snapshot,
        config: &ModelConfig,
    ) -> Result<Self, String> {
        let (plan, policies) = ExpertPlan::compile(programs, snapshot, config)?;
        let mut fields = Fields::of("experts");
        fields.text(&version.digest).list(programs);
        Ok(Self { plan, policies, fields })
    }

    /// The plan with indices into a composition's modules, which get the policies that they lack.
    pub(super) fn attached(&self, modules: &mut Vec<NamedModule>) -> ExpertPlan {
        self.plan.attached(&self.policies, modules)
    }

    /// The router's digest and its programs, for digests of compositions.
    pub(super) fn fields(&self) -> Fields {
        self.fields.clone()
    }
}

impl Composer {
    /// Asks the routers of a chain for the experts of a sparse base, until one chooses. A router
    /// that fails leaves them to the next, and in the end to the base; one that is out of service
    /// is passed over.
    ///
    /// `None` at once for a base without experts. Errors are those of a refused parameter and of a
    /// policy to fail.
    pub(super) fn ask_experts(
        &self,
        question: &Question<'_>,
        chain: &[Link],
    ) -> Result<Option<RoutedExperts>, ComposeError> {
        if self.expert_layers.is_empty() {
            return Ok(None);
        }
        let (router_request, snapshot) = (question.request, question.snapshot);
        for (at, link) in chain.iter().enumerate() {
            let version = &link.version;
            if version.health.standing(Instant::now()) != Standing::Serving {
                continue;
            }
            let offered = offered(question, version);
            let request = request_for(version, router_request, at + 1 == chain.len(), &offered);
            match version.plan_experts(snapshot, request, &self.expert_layers) {
                Ok(programs) => {
                    match RoutedExperts::new(&programs, version, snapshot, &self.config) {
                        Ok(experts) => return Ok(Some(experts)),
                        Err(reason) => {
                            count(version, router_request, &reason);
                            refused(version, &reason)?;
                        }
                    }
                }
                Err(Fault::Abstain) => {}
                Err(Fault::InvalidParameter(error)) => {
                    return Err(ComposeError::Parameter(as_given(router_request, version, error)));
                }
                Err(fault) => {
                    count(version, router_request, &fault.to_string());
                    refused(version, &fault.to_string())?;
                }
            }
        }
        Ok(None)
    }
}
