//! The experts of a sparse base that a row gets: policies and routers' programs, run on native
//! logits.

use std::cell::RefCell;
use std::collections::BTreeMap;

use polyskill_adapters::apply::{Scratch, low_rank};
use polyskill_adapters::native::expert_layer;
use polyskill_adapters::weights::{Expert, ExpertSite};
use polyskill_adapters::{Lease, Snapshot};
use polyskill_model::compute::{Compute, SharedMut};
use polyskill_model::{ExpertChoice, ExpertOutput, ExpertSlots, ModelConfig};
use polyskill_sdk::experts::{
    ExpertLayer, ExpertOp, ExpertProgram, LayerPolicy, POLICY_KIND, check, interpret,
};

use crate::compose::composition::{Composition, NamedModule};
use crate::hooks::added_experts::{ExpertRun, FeedForwardMath};
use crate::hooks::{RowSpan, Rows};

/// The sparse layers of a base; empty for a dense one.
pub(crate) fn layers(config: &ModelConfig) -> Vec<ExpertLayer> {
    (0..config.num_layers).filter_map(|layer| expert_layer(config, layer)).collect()
}

/// Programs by layer, checked. Layers without one keep the base's choice.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExpertPlan {
    /// The programs, by layer from 0.
    layers: BTreeMap<usize, LayerPlan>,
}

/// The program of one layer.
#[derive(Clone, Debug)]
struct LayerPlan {
    /// Experts of the base at the layer; numbers from there on are a policy's own.
    num_experts: usize,
    /// The ops, checked against the layer.
    ops: Vec<ExpertOp>,
    /// The policy whose own experts aliases mean, as an index into the composition's modules;
    /// `None` where the ops name none.
    module: Option<u32>,
}

impl ExpertPlan {
    /// The policies of modules that act on a whole request, for layers that have no program yet.
    /// Where several speak of a layer, the kept experts, β and aliases each come from the first
    /// that gives them.
    ///
    /// `acting` has indices into `modules`; weights do not matter, as a policy acts as a whole.
    pub(crate) fn with_policies<'a>(
        self,
        acting: impl Iterator<Item = &'a (u32, f32)>,
        modules: &[NamedModule],
        config: &ModelConfig,
    ) -> Self {
        let mut said: BTreeMap<u32, (LayerPolicy, u32)> = BTreeMap::new();
        for &(module, _) in acting {
            for policy in &modules[module as usize].module.shape().policy {
                let (all, brings) = said.entry(policy.layer).or_default();
                all.layer = policy.layer;
                all.keep = all.keep.take().or_else(|| policy.keep.clone());
                all.beta = all.beta.or(policy.beta);
                if all.alias.is_none() && policy.alias.is_some() {
                    all.alias.clone_from(&policy.alias);
                    (all.num_extra, *brings) = (policy.num_extra, module);
                }
            }
        }
        let mut plan = self;
        for (number, (policy, module)) in said {
            let Some(layer) = expert_layer(config, number as usize) else { continue };
            plan.layers.entry(number as usize).or_insert_with(|| LayerPlan {
                num_experts: layer.num_experts as usize,
                ops: policy.ops(layer),
                module: (policy.num_extra > 0).then_some(module),
            });
        }
        plan
    }

    /// Checks a router's programs. The second value are the policies whose experts they mean, which
    /// the plan's indices point to until it is attached to a composition's modules. The first
    /// program of a layer counts.
    ///
    /// The reason is given for a layer without experts, a module that is no expert policy, and ops
    /// that do not fit.
    pub(crate) fn compile(
        programs: &[ExpertProgram],
        snapshot: &Snapshot,
        config: &ModelConfig,
    ) -> Result<(Self, Vec<NamedModule>), String> {
        let (mut plan, mut modules) = (Self::default(), Vec::new());
        for (index, program) in programs.iter().enumerate() {
            let policy = |module| policy(snapshot, module, &mut modules);
            let module = program.module.map(policy).transpose();
            let module = module.map_err(|reason| format!("expert program {index}: {reason}"))?;
            for &number in &program.layers {
                let Some(layer) = expert_layer(config, number as usize) else {
                    return Err(format!("expert program {index}: layer {number} has no experts"));
                };
                let brought = |module: u32| {
                    let shape = modules[module as usize].module.shape();
                    let policy = shape.policy.iter().find(|policy| policy.layer == number);
                    policy.map_or(0, |policy| policy.num_extra)
                };
                let num_extra = module.map_or(0, brought);
                check(&program.ops, layer, num_extra)
                    .map_err(|error| format!("expert program {index}, layer {number}: {error}"))?;
                plan.layers.entry(number as usize).or_insert_with(|| LayerPlan {
                    num_experts: layer.num_experts as usize,
                    ops: program.ops.clone(),
                    module: module.filter(|_| num_extra > 0),
                });
            }
        }
        Ok((plan, modules))
    }

    /// The plan with indices into a composition's modules, which get the policies that they lack.
    pub(crate) fn attached(
        &self,
        policies: &[NamedModule],
        modules: &mut Vec<NamedModule>,
    ) -> Self {
        let places: Vec<u32> = policies.iter().map(|lease| place(modules, lease)).collect();
        let mut plan = self.clone();
        for layer in plan.layers.values_mut() {
            layer.module = layer.module.map(|module| places[module as usize]);
        }
        plan
    }

    /// True where every layer keeps the base's choice.
    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

/// The index of a module among others, found by its name; it is appended where they lack it.
fn place(modules: &mut Vec<NamedModule>, lease: &NamedModule) -> u32 {
    let known = modules.iter().position(|known| known.name == lease.name);
    let at = known.unwrap_or_else(|| {
        modules.push(lease.clone());
        modules.len() - 1
    });
    at as u32
}

/// The index among `modules` of the policy that a program names by its index in the snapshot.
fn policy(snapshot: &Snapshot, module: u32, modules: &mut Vec<NamedModule>) -> Result<u32, String> {
    let found = snapshot.iter().nth(module as usize);
    let Some((name, found)) = found.filter(|(_, found)| found.kind().as_str() == POLICY_KIND)
    else {
        return Err(format!("module {module} is no expert policy"));
    };
    Ok(place(modules, &NamedModule { name: name.to_owned(), module: found.clone() }))
}

/// An expert that came with a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OwnExpert {
    /// The span whose composition has the policy.
    span: usize,
    /// The policy's index in that composition.
    module: u32,
    /// Its number among the policy's own.
    expert: u32,
}

/// A row that an expert of a policy is run for.
#[derive(Clone, Copy, Debug)]
struct PolicyRow {
    /// The expert; rows of one are run together.
    expert: OwnExpert,
    row: usize,
    weight: f32,
}

/// Rows for the experts that policies bring, from the choice to the end of the layer's
/// feed-forward.
#[derive(Debug, Default)]
pub(crate) struct PolicyExperts {
    /// The rows of the layer.
    rows: Vec<PolicyRow>,
    /// Experts and weights of one row, ascending.
    picks: Vec<(u32, f32)>,
    /// Buffers of the runs.
    run: ExpertRun,
}

impl PolicyExperts {
    /// Replaces the base's choice where a composition has a program for the layer. `logits` are
    /// those of the base's router, `[rows, num_experts]`. A row whose weights are not finite keeps
    /// the base's choice.
    ///
    /// Picks of a policy's own experts are noted for [`PolicyExperts::add`].
    pub(crate) fn choose(
        &mut self,
        spans: &[RowSpan],
        layer: usize,
        logits: &[f32],
        choice: &mut ExpertChoice,
    ) {
        self.rows.clear();
        for (index, span) in spans.iter().enumerate() {
            let Some(plan) = span.composition.experts.layers.get(&layer) else { continue };
            for row in span.rows.clone() {
                let logits = &logits[row * plan.num_experts..(row + 1) * plan.num_experts];
                if !interpret(&plan.ops, logits, &mut self.picks) {
                    continue;
                }
                let native = self.picks.partition_point(|(e, _)| (*e as usize) < plan.num_experts);
                for &(expert, weight) in &self.picks[native..] {
                    let Some(module) = plan.module else { continue };
                    let expert = expert - plan.num_experts as u32;
                    let expert = OwnExpert { span: index, module, expert };
                    self.rows.push(PolicyRow { expert, row, weight });
                }
                choice.set(row, self.picks[..native].iter().copied());
            }
        }
    }

    /// Adds the outputs of policies' own experts, times their weights, to `output`, `[rows,
    /// hidden]`. Rows of one composition and expert are computed together.
    pub(crate) fn add(
        &mut self,
        math: FeedForwardMath<'_>,
        spans: &[RowSpan],
        layer: usize,
        input: Rows<'_>,
        output: &mut [f32],
    ) {
        let hidden = input.width;
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_by_key(|at| (at.expert, at.row));
        for group in rows.chunk_by(|a, b| a.expert == b.expert) {
            let OwnExpert { span, module, expert } = group[0].expert;
            let Some(lease) = spans[span].composition.leases.get(module as usize) else { continue };
            let Some(expert) = own_expert(lease, layer, expert) else { continue };
            let numbers = group.iter().map(|at| at.row);
            let made = self.run.run(math, expert, numbers, input);
            for (PolicyRow { row, weight, .. }, made) in group.iter().zip(made) {
                let sum = &mut output[row * hidden..(row + 1) * hidden];
                sum.iter_mut().zip(made).for_each(|(sum, made)| *sum += weight * made);
            }
        }
        rows.clear();
        self.rows = rows;
    }
}

/// An expert of a policy's own at a layer; `None` where its weights have none of this number.
fn own_expert(lease: &Lease, layer: usize, expert: u32) -> Option<&Expert> {
    lease.policy_expert(layer, expert as usize)
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Adds the low-rank products of modules that act on every row of a request at its experts'
/// linears. `input` is `[slots, inputs]`, each of `outputs` is `[slots, width]`.
///
/// A step without such modules returns at once.
#[expect(unsafe_code, reason = "tasks write disjoint slots")]
pub(crate) fn add_loras(
    compute: &Compute,
    spans: &[RowSpan],
    layer: usize,
    slots: &ExpertSlots<'_>,
    input: &[f32],
    outputs: &mut [ExpertOutput<'_>],
) {
    const SLOTS_PER_TASK: usize = 8;
    let has_loras = |module: u32, composition: &Composition| {
        composition.weights(module).is_some_and(|weights| weights.has_expert_loras())
    };
    let acts = |span: &RowSpan| {
        span.composition.on_every_row().any(|(module, _)| has_loras(*module, &span.composition))
    };
    if !spans.iter().any(acts) {
        return;
    }
    let num_slots = slots.slots.len();
    let inputs = input.len() / num_slots.max(1);
    for ExpertOutput { projection, values, width } in outputs {
        let (projection, width) = (*projection, *width);
        let values = SharedMut::new(values);
        compute.run(num_slots.div_ceil(SLOTS_PER_TASK), &|task| {
            SCRATCH.with_borrow_mut(|scratch| {
                let first = task * SLOTS_PER_TASK;
                for slot in first..num_slots.min(first + SLOTS_PER_TASK) {
                    let (row, expert) = slots.slots[slot];
                    let at = spans.partition_point(|span| span.rows.end <= row as usize);
                    let Some(span) = spans.get(at) else { continue };
                    let site = ExpertSite { layer, expert: expert as usize, projection };
                    let x = &input[slot * inputs..(slot + 1) * inputs];
                    // SAFETY: a slot belongs to one task.
                    let y = unsafe { values.slice(slot * width, width) };
                    for &(module, weight) in span.composition.on_every_row() {
                        let weights = span.composition.weights(module);
                        if let Some(lora) = weights.and_then(|w| w.expert_lora(site)) {
                            low_rank(lora, weight, x, y, scratch);
                        }
                    }
                }
            })
        });
    }
}
