//! Traces: the record of a request's routing.

use std::collections::BTreeMap;

/// The part of a request's routing that is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TraceLevel {
    /// Nothing.
    #[default]
    None,
    /// The share of each module over generated tokens and sites.
    Summary,
    /// The picks of every generated token at every site.
    Full,
}

/// The picks of one row at one site: indices into the composition's modules, with weights.
#[derive(Clone, Debug, PartialEq)]
pub struct SitePicks {
    /// Site number.
    pub site: u32,
    /// Picks in the order in which they act.
    pub picks: Vec<(u32, f32)>,
    /// The best candidates by their scores before any was chosen, best first; only in full traces,
    /// and only where the site's own program decided.
    pub scores: Vec<(u32, f32)>,
}

/// The choice of experts for one row at a sparse layer of the base.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerExperts {
    /// Layer number, from 0.
    pub layer: u32,
    /// Logits of the base's own router, one per expert.
    pub logits: Vec<f32>,
    /// Experts of the base that were run, with their weights, ascending.
    pub experts: Vec<(u32, f32)>,
}

/// The record of one row.
#[derive(Clone, Debug, Default)]
pub(crate) struct RowTrace {
    /// Picks by site; ascending once the step is over.
    pub(crate) picks: Vec<SitePicks>,
    /// Choices of sparse layers, in the order of the layers.
    pub(crate) experts: Vec<LayerExperts>,
}

/// Adds up a request's picks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Sum of each module's weights over all decisions.
    weights: BTreeMap<u32, f64>,
    /// Decisions that were added: one per token and site with picks on record.
    decisions: u64,
}

impl Tally {
    /// Adds the picks of one token.
    pub(crate) fn add(&mut self, sites: &[SitePicks]) {
        for site in sites {
            self.decisions += 1;
            for &(module, weight) in &site.picks {
                *self.weights.entry(module).or_default() += f64::from(weight);
            }
        }
    }

    /// Mean weight per decision of each module that was ever picked, by ascending index.
    pub(crate) fn shares(&self) -> Vec<(u32, f64)> {
        let decisions = self.decisions.max(1) as f64;
        self.weights.iter().map(|(&module, weight)| (module, weight / decisions)).collect()
    }
}
