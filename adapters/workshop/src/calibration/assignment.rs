//! The linear assignment problem: each row of a matrix gets a column of its own, and the sum is the
//! largest.
//!
//! The Hungarian method (Kuhn, 1955) as shortest augmenting paths, O(n³) (Crouse, "On Implementing
//! 2D Rectangular Assignment Algorithms", 2016). It is written here because the crates that have it
//! ask for more than it takes: `pathfinding` for weights with a total order, which floats lack, and
//! six crates; `lapjv` and `hungarian` for ndarray.

use crate::transform::matrix::Mat;

/// The number that stands for no row or column yet.
const NONE: usize = usize::MAX;

/// The column of each row of a square matrix of finite scores, such that the sum of the chosen
/// scores is the largest.
///
/// Every column is taken once. The choice among several best results depends on nothing but the
/// scores.
pub(super) fn assign(scores: &Mat) -> Vec<usize> {
    debug_assert_eq!(scores.rows, scores.columns);
    let mut search = Search::new(scores);
    (0..scores.rows).for_each(|row| search.augment(row));
    search.columns
}

/// The state of the search: rows with and without columns, and prices that prove the result.
///
/// Costs are scores with their sign turned. With the prices of its row and column taken off, no
/// cost is below zero, and that of a pair that was made is zero.
struct Search<'a> {
    /// The matrix, `[n, n]`.
    scores: &'a Mat,
    /// Price of each row.
    row_prices: Vec<f64>,
    /// Price of each column.
    column_prices: Vec<f64>,
    /// Column of each row, [`NONE`] for one that has none yet.
    columns: Vec<usize>,
    /// Row of each column, [`NONE`] for a free one.
    rows: Vec<usize>,
    /// Length of the shortest path found to each column, by reduced costs; infinite before one is
    /// found.
    lengths: Vec<f64>,
    /// Row before each column on that path.
    before: Vec<usize>,
    /// Columns whose shortest path is known, in the order in which they were reached.
    reached: Vec<usize>,
    /// The other columns.
    left: Vec<usize>,
}

impl<'a> Search<'a> {
    /// A search in which no row has a column and all prices are zero.
    fn new(scores: &'a Mat) -> Self {
        let n = scores.rows;
        Self {
            scores,
            row_prices: vec![0.0; n],
            column_prices: vec![0.0; n],
            columns: vec![NONE; n],
            rows: vec![NONE; n],
            lengths: vec![0.0; n],
            before: vec![NONE; n],
            reached: Vec::with_capacity(n),
            left: Vec::with_capacity(n),
        }
    }

    /// Gives one more row a column; others may change theirs, but none is left without one. Prices
    /// of the rows and columns that the search passed change so that they stay valid.
    fn augment(&mut self, start: usize) {
        let free = self.shortest_path(start);
        let length = self.lengths[free];
        self.row_prices[start] += length;
        for &column in self.reached.iter().filter(|column| **column != free) {
            let saved = length - self.lengths[column];
            self.row_prices[self.rows[column]] += saved;
            self.column_prices[column] -= saved;
        }
        // Along the path each row takes the column after it and leaves the one before it.
        let mut column = free;
        loop {
            let row = self.before[column];
            self.rows[column] = row;
            std::mem::swap(&mut column, &mut self.columns[row]);
            if row == start {
                return;
            }
        }
    }

    /// Dijkstra's search from a row to the nearest column without a row. Returns that column, which
    /// is the last of `reached`.
    ///
    /// O(n²), for every step looks at all columns that are left.
    fn shortest_path(&mut self, start: usize) -> usize {
        self.lengths.fill(f64::INFINITY);
        self.reached.clear();
        self.left.clear();
        // From the last on, so that a matrix without differences gives every row its own column.
        self.left.extend((0..self.scores.rows).rev());
        let (mut row, mut length) = (start, 0.0);
        loop {
            let (scores, base) = (self.scores.row(row), length - self.row_prices[row]);
            let (mut nearest, mut least) = (0, f64::INFINITY);
            for (at, &column) in self.left.iter().enumerate() {
                let through = base - scores[column] - self.column_prices[column];
                if through < self.lengths[column] {
                    self.lengths[column] = through;
                    self.before[column] = row;
                }
                let found = self.lengths[column];
                // Of columns as near, one that is free ends the search.
                if found < least || (found == least && self.rows[column] == NONE) {
                    (nearest, least) = (at, found);
                }
            }
            let column = self.left.swap_remove(nearest);
            self.reached.push(column);
            length = least;
            match self.rows[column] {
                NONE => return column,
                taken => row = taken,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::matrix::tests::noise;

    fn sum(scores: &Mat, columns: &[usize]) -> f64 {
        columns.iter().enumerate().map(|(row, column)| scores.row(row)[*column]).sum()
    }

    /// The largest sum, all assignments tried.
    fn best(scores: &Mat, taken: &mut Vec<usize>) -> f64 {
        if taken.len() == scores.rows {
            return sum(scores, taken);
        }
        let mut most = f64::NEG_INFINITY;
        for column in 0..scores.columns {
            if !taken.contains(&column) {
                taken.push(column);
                most = most.max(best(scores, taken));
                taken.pop();
            }
        }
        most
    }

    #[test]
    fn no_other_assignment_is_better() {
        for n in 0..7 {
            for seed in 1..20 {
                let mut scores = noise(n, n, seed);
                // Of whole numbers many are equal.
                if seed % 2 == 0 {
                    scores.values.iter_mut().for_each(|value| *value = (*value * 2.0).round());
                }
                let found = assign(&scores);
                let mut columns = found.clone();
                columns.sort_unstable();
                assert_eq!(columns, (0..n).collect::<Vec<_>>());
                let most = best(&scores, &mut Vec::new());
                assert!((sum(&scores, &found) - most).abs() < 1e-12, "{n} {seed}");
                assert_eq!(found, assign(&scores));
            }
        }
    }

    #[test]
    fn a_matrix_without_differences_leaves_all_in_their_places() {
        assert_eq!(assign(&Mat::zeros(5, 5)), [0, 1, 2, 3, 4]);
    }
}
