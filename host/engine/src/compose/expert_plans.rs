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
use crate::hooks::expert_choice::ExpertPlan;
use crate::identity::Fields;
use crate::routers::health::Standing;
use crate::routers::version::RouterVersion;

/// The experts that a router chose for a request.
pub(super) struct RoutedExperts {
    plan: ExpertPlan,
    policies: Vec<NamedModule>,
    fields: Fields,
}

impl RoutedExperts {
    fn new(
        programs: &[ExpertProgram],
        slot: &RouterVersion,
        snapshot: &Snapshot,
        config: &ModelConfig,
    ) -> Result<Self, String> {
        let (plan, policies) = ExpertPlan::compile(programs, snapshot, config)?;
        let mut fields = Fields::of("experts");
        fields.text(&slot.digest).list(programs);
        Ok(Self { plan, policies, fields })
    }

    /// The plan among a composition's modules, which get the policies that they lack.
    pub(super) fn attached(&self, modules: &mut Vec<NamedModule>) -> ExpertPlan {
        self.plan.attached(&self.policies, modules)
    }

    /// The programs and the router that made them, for digests.
    pub(super) fn fields(&self) -> Fields {
        self.fields.clone()
    }
}

impl Composer {
    /// Asks the routers of a chain for the experts of a sparse base, until one chooses. A router that fails
    /// leaves them to the base.
    pub(super) fn ask_experts(
        &self,
        question: &Question<'_>,
        chain: &[Link],
    ) -> Result<Option<RoutedExperts>, ComposeError> {
        if self.expert_layers.is_empty() {
            return Ok(None);
        }
        let (asked, snapshot) = (question.request, question.snapshot);
        for (at, link) in chain.iter().enumerate() {
            let slot = &link.slot;
            if slot.health.standing(Instant::now()) != Standing::Serving {
                continue;
            }
            let offered = offered(question, slot);
            let request = request_for(slot, asked, at + 1 == chain.len(), &offered);
            match slot.plan_experts(snapshot, request, &self.expert_layers) {
                Ok(programs) => match RoutedExperts::new(&programs, slot, snapshot, &self.config) {
                    Ok(experts) => return Ok(Some(experts)),
                    Err(reason) => {
                        count(slot, asked, &reason);
                        refused(slot, &reason)?;
                    }
                },
                Err(Fault::Abstain) => {}
                Err(Fault::InvalidParameter(error)) => {
                    return Err(ComposeError::Parameter(as_given(asked, slot, error)));
                }
                Err(fault) => {
                    count(slot, asked, &fault.to_string());
                    refused(slot, &fault.to_string())?;
                }
            }
        }
        Ok(None)
    }
}
