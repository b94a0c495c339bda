//! UNCURL's clusters of the experts that a router scores alike (Sarkar et al., "Revisiting SMoE
//! Language Models by Evaluating Inefficiencies with Task Specific Expert Pruning", 2024).
//!
//! Spectral clustering after Ng, Jordan and Weiss ("On Spectral Clustering", 2001): experts become
//! points by the eigenvectors of the normalised Laplacian, rows of unit length, and k-means divides
//! them. Nothing is drawn at random.

use std::cmp::Reverse;

use super::{Groups, Usage};
use crate::transform::eigen::largest;
use crate::transform::matrix::{Mat, dot};

/// Starts of k-means, from as many first centres; the result with the smallest sum of squared
/// distances counts.
const MAX_STARTS: usize = 32;
/// Rounds of k-means per start: a bound, for it settles long before.
const MAX_ROUNDS: usize = 100;

/// So many clusters of one layer's experts, at most one for each, by the similarity of the router's
/// logits. Each is led by its most used expert, the lower one on ties.
///
/// Unlike [`group_globally`](super::group_globally), every layer gets the same number of groups.
pub fn group_by_spectrum(usage: &Usage, num_clusters: usize) -> Groups {
    let counts = usage.counts();
    let n = counts.len();
    // [num_experts, num_experts]
    let mut similarity = Mat::zeros(n, n);
    for (at, value) in similarity.values.iter_mut().enumerate() {
        *value = usage.similarity(at / n, at % n);
    }
    let clusters = clusters(&similarity, num_clusters.min(n));
    let leader = |expert: usize| {
        let members = (0..n).filter(|other| clusters[*other] == clusters[expert]);
        members.min_by_key(|other| (Reverse(counts[*other]), *other)).unwrap_or(expert)
    };
    (0..n).map(leader).collect()
}

/// The cluster of each row of a symmetric matrix of similarities; none is empty where there are no
/// more than rows.
///
/// Rows are scaled by the roots of their sums, D^(−½)·S·D^(−½), whose largest eigenvectors span the
/// points. Ties between starts go to the first.
fn clusters(similarity: &Mat, num_clusters: usize) -> Vec<usize> {
    let n = similarity.rows;
    let degree = |row: usize| similarity.row(row).iter().sum::<f64>();
    // Nothing is like a row of zeros.
    let scale = |sum: f64| if sum > 0.0 { 1.0 / sum.sqrt() } else { 0.0 };
    let scales: Vec<f64> = (0..n).map(|row| scale(degree(row))).collect();
    let mut scaled = similarity.clone();
    for (at, value) in scaled.values.iter_mut().enumerate() {
        *value *= scales[at / n] * scales[at % n];
    }
    // The Laplacian is I less this matrix, so its smallest eigenvalues are the largest here.
    let (_, vectors) = largest(scaled, |_| num_clusters);
    // [num_experts, num_clusters]
    let mut points = vectors.transposed();
    for row in 0..n {
        let length = dot(points.row(row), points.row(row)).sqrt();
        if length > 0.0 {
            points.row_mut(row).iter_mut().for_each(|value| *value /= length);
        }
    }
    let starts = 0..n.min(MAX_STARTS);
    let results = starts.map(|first| k_means(&points, num_clusters, first));
    results.min_by(|a, b| a.1.total_cmp(&b.1)).map_or_else(Vec::new, |(clusters, _)| clusters)
}

/// Lloyd's k-means from centres that lie far apart, the first of them the point `first`.
///
/// Returns the cluster of each row of `points`, `[points, dimensions]`, and the sum of squared
/// distances from the clusters' means.
fn k_means(points: &Mat, num_clusters: usize, first: usize) -> (Vec<usize>, f64) {
    let mut centres = far_apart(points, num_clusters, first);
    let mut clusters = Vec::new();
    for _ in 0..MAX_ROUNDS {
        let mut found: Vec<usize> =
            (0..points.rows).map(|at| nearest(&centres, points.row(at)).0).collect();
        fill_empty(points, &centres, &mut found);
        if found == clusters {
            break;
        }
        clusters = found;
        centres = means(points, &clusters, num_clusters);
    }
    let spread = clusters.iter().enumerate();
    let spread = spread.map(|(at, cluster)| distance(points.row(at), centres.row(*cluster))).sum();
    (clusters, spread)
}

/// `count` centres, `[count, dimensions]`: the first point, then always the point that is farthest
/// from its nearest centre so far.
fn far_apart(points: &Mat, count: usize, first: usize) -> Mat {
    let mut centres = Mat::zeros(0, points.columns);
    let mut next = first;
    for _ in 0..count {
        centres.values.extend_from_slice(points.row(next));
        centres.rows += 1;
        next = farthest((0..points.rows).map(|at| (at, nearest(&centres, points.row(at)).1)))
            .unwrap_or(first);
    }
    centres
}

/// Gives each cluster without a point the point that is farthest from its centre, taken from a
/// cluster that keeps others. A cluster stays empty only if there are more clusters than points.
fn fill_empty(points: &Mat, centres: &Mat, clusters: &mut [usize]) {
    let size = |clusters: &[usize], of: usize| clusters.iter().filter(|c| **c == of).count();
    for empty in 0..centres.rows {
        if size(clusters, empty) > 0 {
            continue;
        }
        let shared = (0..points.rows).filter(|at| size(clusters, clusters[*at]) > 1);
        let away = |at: usize| (at, distance(points.row(at), centres.row(clusters[at])));
        if let Some(at) = farthest(shared.map(away)) {
            clusters[at] = empty;
        }
    }
}

/// The mean of each cluster's points, `[num_clusters, dimensions]`; zeros for a cluster without
/// points.
fn means(points: &Mat, clusters: &[usize], num_clusters: usize) -> Mat {
    let mut sums = Mat::zeros(num_clusters, points.columns);
    let mut counts = vec![0_usize; num_clusters];
    for (at, &cluster) in clusters.iter().enumerate() {
        counts[cluster] += 1;
        let pairs = sums.row_mut(cluster).iter_mut().zip(points.row(at));
        pairs.for_each(|(sum, value)| *sum += value);
    }
    for (cluster, count) in counts.into_iter().enumerate() {
        sums.row_mut(cluster).iter_mut().for_each(|sum| *sum /= count.max(1) as f64);
    }
    sums
}

/// The nearest centre, the first on ties, and its squared distance; `(0, 0.0)` if there are no
/// centres.
fn nearest(centres: &Mat, point: &[f64]) -> (usize, f64) {
    let distances = (0..centres.rows).map(|at| (at, distance(centres.row(at), point)));
    distances.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
}

/// The number that stands with the largest distance, the first on ties; `None` if there are none.
fn farthest(distances: impl Iterator<Item = (usize, f64)>) -> Option<usize> {
    distances.min_by(|a, b| b.1.total_cmp(&a.1)).map(|(at, _)| at)
}

/// The squared Euclidean distance of two points.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

#[cfg(test)]
mod tests {
    use polyskill_sdk::experts::{ExpertLayer, native};

    use super::*;

    /// `inside` where rows are of one block, `across` elsewhere, with noise.
    fn blocks(of: &[usize], [inside, across]: [f64; 2], noise: f64) -> Mat {
        let n = of.len();
        let mut similarity = Mat::zeros(n, n);
        for row in 0..n {
            for column in 0..row {
                let base = if of[row] == of[column] { inside } else { across };
                let value = base + noise * ((row * 7 + column * 13) as f64).sin();
                similarity.row_mut(row)[column] = value;
                similarity.row_mut(column)[row] = value;
            }
            similarity.row_mut(row)[row] = 1.0;
        }
        similarity
    }

    /// Whether two divisions are the same but for the clusters' numbers.
    fn same(a: &[usize], b: &[usize]) -> bool {
        let pairs = || (0..a.len()).flat_map(|x| (0..a.len()).map(move |y| (x, y)));
        a.len() == b.len() && pairs().all(|(x, y)| (a[x] == a[y]) == (b[x] == b[y]))
    }

    #[test]
    fn blocks_of_similarity_are_found() {
        let of = [0, 1, 2, 0, 1, 2, 2, 2, 0, 3, 3, 1];
        for (levels, noise) in [([1.0, 0.0], 0.0), ([0.9, 0.1], 0.05), ([0.8, 0.5], 0.04)] {
            let similarity = blocks(&of, levels, noise);
            let found = clusters(&similarity, 4);
            assert!(same(&found, &of), "{levels:?}: {found:?}");
            assert_eq!(found, clusters(&similarity, 4));
        }
    }

    #[test]
    fn no_cluster_is_empty() {
        let alike = blocks(&[0; 9], [1.0, 1.0], 0.0);
        let apart = blocks(&[0, 1, 2, 3, 4, 5, 6, 7, 8], [1.0, 0.0], 0.0);
        for similarity in [alike, apart, Mat::zeros(9, 9)] {
            for num_clusters in 1..=9 {
                let mut found = clusters(&similarity, num_clusters);
                found.sort_unstable();
                found.dedup();
                assert_eq!(found, (0..num_clusters).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_most_used_expert_leads() {
        let layer = ExpertLayer { layer: 0, num_experts: 4, top_k: 1, renormalise: false };
        let mut usage = Usage::new(layer);
        // 0 is like 2 and 1 is like 3; 2 and 1 are chosen.
        let tokens = [[2.9, -3.0, 3.0, -3.0], [2.9, -3.0, 3.0, -3.0], [-3.0, 3.0, -2.9, 2.9]];
        usage.add(&tokens.concat(), &native(layer));
        assert_eq!(group_by_spectrum(&usage, 2), [2, 1, 2, 1]);
        assert_eq!(group_by_spectrum(&usage, 1), [2; 4]);
        assert_eq!(group_by_spectrum(&usage, 4), [0, 1, 2, 3]);
        assert_eq!(group_by_spectrum(&usage, 9), [0, 1, 2, 3]);
        // Without a token all are alike.
        assert_eq!(group_by_spectrum(&Usage::new(layer), 1), [0; 4]);
    }
}
