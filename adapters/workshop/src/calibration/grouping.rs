//! Merging experts that are alike: MC-SMoE (Li et al., "Merge, Then Compress", 2024), without the
//! paper's alignment of hidden units, and UNCURL (Sarkar et al., 2024), with it; both without the
//! papers' training afterwards.

use polyskill_model::Experts;
use polyskill_model::Projection;

use super::{Orders, Usage};
use polyskill_adapters::lora::Elements;
use polyskill_adapters::weights::Expert;

/// The groups of one layer: for each expert, the number of the dominant expert that it belongs to.
/// That one leads its group and belongs to itself.
pub type Groups = Vec<usize>;

/// `num_groups` groups over all layers, at least one in each: the most used experts are dominant,
/// and the others join the dominant one of their layer whose logits are most like theirs.
///
/// Layers compete for groups, so a layer that uses few experts much gets few groups. If
/// `num_groups` is below the number of layers, each layer still gets one. On equal similarity the
/// dominant expert that is less used leads.
pub fn group_globally(layers: &[Usage], num_groups: usize) -> Vec<Groups> {
    let experts = |layer: usize| layers[layer].counts().iter().enumerate();
    let mut all: Vec<(u64, usize, usize)> = (0..layers.len())
        .flat_map(|layer| experts(layer).map(move |(expert, count)| (*count, layer, expert)))
        .collect();
    // The most used first; on ties the lower layer and expert.
    all.sort_by_key(|(count, layer, expert)| (std::cmp::Reverse(*count), *layer, *expert));
    let mut dominant: Vec<Vec<usize>> = (0..layers.len())
        .map(|layer| all.iter().find(|entry| entry.1 == layer).map(|e| e.2).into_iter().collect())
        .collect();
    let mut left = num_groups.saturating_sub(layers.len());
    for (_, layer, expert) in all {
        if left > 0 && !dominant[layer].contains(&expert) {
            dominant[layer].push(expert);
            left -= 1;
        }
    }
    let join = |(usage, dominant): (&Usage, &Vec<usize>)| {
        let nearest = |expert: usize| {
            let alike = |other: &&usize| usage.similarity(expert, **other);
            let best = dominant.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
            best.copied().unwrap_or(expert)
        };
        let all = 0..usage.counts().len();
        all.map(|e| if dominant.contains(&e) { e } else { nearest(e) }).collect()
    };
    layers.iter().zip(&dominant).map(join).collect()
}

/// The merged experts of a layer, averaged by how often each was used, their features in the given
/// orders, and for each expert the one that is run in its place: itself where it is alone, else a
/// merged one, numbered from the layer's experts on.
///
/// Merged experts come by ascending leader and are stored as bfloat16. An expert without an order
/// keeps its features where they are. Members that nothing chose in the text are averaged with
/// equal weights if the whole group is unused, else they do not count.
pub fn merged(
    experts: &Experts,
    usage: &Usage,
    groups: &Groups,
    orders: &Orders,
) -> (Vec<u32>, Vec<Expert>) {
    let num_experts = groups.len();
    let mut targets: Vec<u32> = (0..num_experts as u32).collect();
    let mut merged = Vec::new();
    for dominant in 0..num_experts {
        let members: Vec<usize> = (0..num_experts).filter(|e| groups[*e] == dominant).collect();
        if members.len() < 2 {
            continue;
        }
        let counts: Vec<f64> = members.iter().map(|e| usage.counts()[*e] as f64).collect();
        let sum: f64 = counts.iter().sum();
        // Experts that nothing chose weigh alike.
        let share = |count: &f64| if sum > 0.0 { count / sum } else { 1.0 / members.len() as f64 };
        let shares: Vec<f64> = counts.iter().map(share).collect();
        let part = |projection| average(experts, &members, &shares, orders, projection);
        let parts = [Projection::Gate, Projection::Up, Projection::Down].map(part);
        let [gate, up, down] = parts.map(|values| {
            let bits = values.iter().map(|value| half::bf16::from_f32(*value).to_bits());
            Elements::Bf16(bits.collect())
        });
        members.iter().for_each(|e| targets[*e] = (num_experts + merged.len()) as u32);
        let width = experts.linear(dominant, Projection::Gate).map_or(0, |gate| gate.matrix.outs());
        merged.push(Expert { width, gate, up, down });
    }
    (targets, merged)
}

/// Σ share·W over the members of a group, `[outs, inner]` of the projection, with features in the
/// given orders.
///
/// `shares` belong to `members` in order and add up to one. Members that were not loaded are left
/// out, and their share is not given to the others.
fn average(
    experts: &Experts,
    members: &[usize],
    shares: &[f64],
    orders: &Orders,
    projection: Projection,
) -> Vec<f32> {
    let mut sum: Vec<f64> = Vec::new();
    for (&expert, share) in members.iter().zip(shares) {
        let Some(linear) = experts.linear(expert, projection) else { continue };
        let (outs, inner) = (linear.matrix.outs(), linear.matrix.inner());
        sum.resize(outs * inner, 0.0);
        let order = orders.get(expert).map_or(&[][..], Vec::as_slice);
        // Features are columns of the down projection and rows of the others.
        let (row_order, column_order) = match projection {
            Projection::Down => (&[][..], order),
            _ => (order, &[][..]),
        };
        let from = |order: &[u32], at: usize| order.get(at).map_or(at, |from| *from as usize);
        let mut row = vec![0.0; inner];
        for (out, sums) in sum.chunks_exact_mut(inner).enumerate() {
            linear.matrix.read_row(from(row_order, out), &mut row);
            let values = (0..inner).map(|at| row[from(column_order, at)]);
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += share * f64::from(value));
        }
    }
    sum.into_iter().map(|value| value as f32).collect()
}

#[cfg(test)]
mod tests {
    use polyskill_sdk::experts::{ExpertLayer, native};

    use super::*;

    #[test]
    fn the_most_used_lead_and_every_layer_keeps_one() {
        let layer = ExpertLayer { layer: 0, num_experts: 3, top_k: 1, renormalise: false };
        let usage = |tokens: &[[f32; 3]]| {
            let mut usage = Usage::new(layer);
            usage.add(&tokens.concat(), &native(layer));
            usage
        };
        // In the first layer experts 0 and 1 lead and 2 is like 1; the second layer has all tokens at expert 2.
        let first = usage(&[[3.0, 0.0, 0.0], [3.0, 0.0, 0.1], [0.0, 3.0, 2.0], [0.0, 3.0, 2.0]]);
        let second = usage(&[[0.0, 1.0, 3.0]]);
        let groups = group_globally(&[first.clone(), second.clone()], 3);
        assert_eq!(groups, [vec![0, 1, 1], vec![2, 2, 2]]);
        assert_eq!(group_globally(&[first, second], 0), [vec![0, 0, 0], vec![2, 2, 2]]);
    }
}
