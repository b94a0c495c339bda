//! Shadows: a second router's decisions on the same hidden states, compared with those that are
//! executed and never applied.

use std::sync::Arc;

use crate::compose::composition::{Composition, Plan};
use crate::hooks::gates::GateBuffers;

/// Agreement of two routers: counts and sums over the decisions that were compared. Divided by
/// `decisions`, both sums are means.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Agreement {
    /// Decisions that were compared: one per generated token at a sampled position and site at
    /// which the second composition decides by a program or a fixed mixture.
    pub decisions: u64,
    /// Of these, those in which both give the largest weight to the same module, or both pick none.
    pub same_best: u64,
    /// Sum over decisions of the weight that both give to the same modules, as a part of the larger
    /// sum of weights, 0 to 1 each. Negative weights count as 0.
    pub overlap: f64,
}

impl Agreement {
    /// Adds the counts of other decisions.
    pub(crate) fn add(&mut self, other: Self) {
        self.decisions += other.decisions;
        self.same_best += other.same_best;
        self.overlap += other.overlap;
    }
}

/// A second composition for a request, whose decisions are compared with those of the one that
/// serves.
#[derive(Debug)]
pub struct Shadow {
    /// The composition; its modules are never applied.
    composition: Arc<Composition>,
    /// For each of its modules the index of the module of the same name in the serving composition;
    /// `None` where that has none.
    numbers: Vec<Option<u32>>,
}

impl Shadow {
    /// A shadow of requests that `serving` answers. Modules of both are the same where their names
    /// are.
    pub fn beside(serving: &Composition, composition: Arc<Composition>) -> Self {
        let number = |name: &str| {
            let at = serving.modules().iter().position(|lease| lease.name == name);
            at.map(|at| at as u32)
        };
        let numbers = composition.modules().iter().map(|lease| number(&lease.name)).collect();
        Self { composition, numbers }
    }

    /// The shadow's decision for a row at a site, compared with the picks that serve. `x` is the
    /// row's input there. `None` where the shadow does not decide at this very site, its answer is
    /// not usable, or its router decides rows in its own code.
    pub(crate) fn compare(
        &self,
        site: usize,
        x: &[f32],
        served: &[(u32, f32)],
        buffers: &mut GateBuffers,
        picks: &mut Vec<(u32, f32)>,
    ) -> Option<Agreement> {
        match &self.composition.plan {
            Plan::Base => picks.clear(),
            Plan::Fixed { picks: fixed, .. } => {
                picks.clear();
                picks.extend_from_slice(fixed);
            }
            Plan::Gated(gates) => {
                let gate = gates.gate(gates.at(site)?.gate);
                if gate.site != site || gate.routed().is_some() || !gate.run(x, buffers, picks) {
                    return None;
                }
            }
        }
        let other = picks.iter().map(|&(module, weight)| {
            (self.numbers.get(module as usize).copied().flatten(), weight)
        });
        Some(compared(served, other))
    }
}

/// Compares one decision; modules that do not serve have no number and match none.
fn compared(
    served: &[(u32, f32)],
    other: impl Iterator<Item = (Option<u32>, f32)> + Clone,
) -> Agreement {
    let positive = |weight: f32| f64::from(weight.max(0.0));
    let sum: f64 = served.iter().map(|pick| positive(pick.1)).sum();
    let other_sum: f64 = other.clone().map(|pick| positive(pick.1)).sum();
    let shared = other.clone().filter_map(|(module, weight)| {
        let pick = served.iter().find(|pick| Some(pick.0) == module)?;
        Some(positive(pick.1.min(weight)))
    });
    // The first of equals is the best on both sides.
    let best = |picks: &mut dyn Iterator<Item = (Option<u32>, f32)>| {
        picks.fold(None, |best: Option<(Option<u32>, f32)>, pick| match best {
            Some(best) if best.1 >= pick.1 => Some(best),
            _ => Some(pick),
        })
    };
    let one = best(&mut served.iter().map(|&(module, weight)| (Some(module), weight)));
    let two = best(&mut { other });
    let same = match (one, two) {
        (None, None) => true,
        (Some(one), Some(two)) => one.0 == two.0,
        _ => false,
    };
    let most = sum.max(other_sum);
    let overlap = if most > 0.0 { shared.sum::<f64>() / most } else { 1.0 };
    Agreement { decisions: 1, same_best: u64::from(same), overlap }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(served: &[(u32, f32)], other: &[(Option<u32>, f32)]) -> (u64, f64) {
        let agreement = compared(served, other.iter().copied());
        (agreement.same_best, agreement.overlap)
    }

    #[test]
    fn agreement_is_shared_weight_and_the_same_best() {
        assert_eq!(of(&[], &[]), (1, 1.0));
        assert_eq!(of(&[(0, 1.0)], &[]), (0, 0.0));
        assert_eq!(of(&[(0, 0.75), (2, 0.25)], &[(Some(0), 0.5), (Some(2), 0.5)]), (1, 0.75));
        assert_eq!(of(&[(0, 0.5), (2, 0.5)], &[(Some(2), 1.0)]), (0, 0.5));
        assert_eq!(of(&[(0, 1.0)], &[(None, 1.0)]), (0, 0.0));
        assert_eq!(of(&[(0, 1.0)], &[(Some(0), 2.0)]), (1, 0.5));
    }
}
