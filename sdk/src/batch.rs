//! The input and the output of [`Router::route`](crate::Router::route).

/// Rows of one step that one plan decides at one site.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Batch<'a> {
    /// Site number.
    pub site: u32,
    /// Rows to decide.
    pub num_rows: usize,
    /// Per column of the scores: the module's position in [`crate::Request::candidates`].
    pub candidates: &'a [u32],
    /// `[rows, columns]`; empty where the program hands over a vector alone.
    pub scores: &'a [f32],
    /// `[rows, width]`; empty unless the program hands it over.
    pub hidden: &'a [f32],
    /// From [`crate::gate::Op::Route`].
    pub arguments: &'a [f32],
}

impl<'a> Batch<'a> {
    /// The scores of a row, one per column.
    pub fn scores_of(&self, row: usize) -> &'a [f32] {
        row_of(self.scores, self.num_rows, row)
    }

    /// The vector of a row.
    pub fn hidden_of(&self, row: usize) -> &'a [f32] {
        row_of(self.hidden, self.num_rows, row)
    }
}

/// A row of `[rows, width]`; empty where there are no values.
fn row_of(values: &[f32], num_rows: usize, row: usize) -> &[f32] {
    let width = values.len() / num_rows.max(1);
    values.get(row * width..(row + 1) * width).unwrap_or_default()
}

/// Picks per row, in compressed rows: row r picks `columns[offsets[r]..offsets[r + 1]]`.
///
/// The host checks every number before use; see [`Decision::row`].
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// One more than rows, ascending, from 0.
    pub offsets: Vec<u32>,
    /// Columns of the batch.
    pub columns: Vec<u32>,
    /// One weight per column that was picked.
    pub weights: Vec<f32>,
}

impl Default for Decision {
    fn default() -> Self {
        Self { offsets: vec![0], columns: Vec::new(), weights: Vec::new() }
    }
}

impl Decision {
    /// Forgets all rows and keeps the memory.
    pub fn clear(&mut self) {
        self.offsets.clear();
        self.offsets.push(0);
        self.columns.clear();
        self.weights.clear();
    }

    /// Adds a pick to the current row.
    pub fn pick(&mut self, column: usize, weight: f32) {
        self.columns.push(u32::try_from(column).unwrap_or(u32::MAX));
        self.weights.push(weight);
    }

    /// Ends the current row, which may have no picks.
    pub fn end_row(&mut self) {
        self.offsets.push(u32::try_from(self.columns.len()).unwrap_or(u32::MAX));
    }

    /// Checks that there is one row for each of the batch; without it, no row can be told from
    /// another. Every column must have a weight.
    ///
    /// # Errors
    /// The found and the expected number.
    pub fn check_rows(&self, num_rows: usize) -> Result<(), String> {
        let (rows, columns, weights) = (self.offsets.len(), self.columns.len(), self.weights.len());
        if rows != num_rows + 1 {
            return Err(format!("{rows} offsets, expected {} for {num_rows} rows", num_rows + 1));
        }
        if columns != weights {
            return Err(format!("{columns} columns with {weights} weights"));
        }
        Ok(())
    }

    /// Checks a row and appends its picks to `picks`, as `(column, weight)`. After an error,
    /// `picks` may hold some of the row's.
    ///
    /// # Errors
    /// The fault of this row: its offsets, or a pick's column or weight.
    pub fn row(
        &self,
        row: usize,
        num_columns: usize,
        picks: &mut Vec<(u32, f32)>,
    ) -> Result<(), String> {
        let bounds = self.offsets.get(row).zip(self.offsets.get(row + 1));
        let (start, end) = bounds.map_or((1, 0), |(&start, &end)| (start as usize, end as usize));
        let range = (start <= end).then(|| self.columns.get(start..end)).flatten();
        let Some((columns, weights)) = range.zip(self.weights.get(start..end)) else {
            return Err(format!("offsets {start} to {end} of {} picks", self.columns.len()));
        };
        if columns.len() > num_columns {
            return Err(format!("{} picks among {num_columns} candidates", columns.len()));
        }
        for (&column, &weight) in columns.iter().zip(weights) {
            if column as usize >= num_columns {
                return Err(format!("column {column} of {num_columns}"));
            }
            if !weight.is_finite() {
                return Err(format!("column {column} has the weight {weight}"));
            }
            picks.push((column, weight));
        }
        match repeated(columns) {
            Some(column) => Err(format!("column {column} is picked twice")),
            None => Ok(()),
        }
    }
}

/// A column that occurs twice. Few picks are compared with each other, many are sorted: a plugin decides
/// how many there are, and this runs between two tokens of everybody.
fn repeated(columns: &[u32]) -> Option<u32> {
    if columns.len() <= 16 {
        let seen_before = |(at, column): &(usize, &u32)| columns[..*at].contains(column);
        return columns.iter().enumerate().find(seen_before).map(|(_, column)| *column);
    }
    let mut sorted = columns.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(decision: &Decision, columns: usize) -> Vec<Result<Vec<(u32, f32)>, String>> {
        let row = |row| {
            let mut picks = Vec::new();
            decision.row(row, columns, &mut picks).map(|()| picks)
        };
        (0..decision.offsets.len() - 1).map(row).collect()
    }

    #[test]
    fn a_bad_row_is_told_from_its_neighbours() {
        let decision = Decision {
            offsets: vec![0, 1, 3, 5, 6, 2, 9],
            columns: vec![2, 0, 1, 1, 1, 7],
            weights: vec![1.0, 0.5, f32::NAN, 0.5, 0.5, 1.0],
        };
        let rows = rows(&decision, 3);
        assert_eq!(rows[0], Ok(vec![(2, 1.0)]));
        for (row, part) in [
            (1, "the weight NaN"),
            (2, "picked twice"),
            (3, "column 7 of 3"),
            (4, "offsets 6 to 2 of 6"),
            (5, "offsets 2 to 9 of 6"),
        ] {
            assert!(rows[row].as_ref().is_err_and(|e| e.contains(part)), "{:?}", rows[row]);
        }
        assert!(decision.check_rows(6).is_ok() && decision.check_rows(5).is_err());
    }

    #[test]
    fn rows_are_built_in_order() {
        let mut decision = Decision::default();
        decision.pick(3, 0.25);
        decision.end_row();
        decision.end_row();
        assert_eq!(rows(&decision, 4), [Ok(vec![(3, 0.25)]), Ok(vec![])]);
        decision.clear();
        assert_eq!(decision, Decision::default());
    }

    #[test]
    fn repeated_picks_are_found_among_few_and_many() {
        for count in [2, 16, 17, 300] {
            let mut columns: Vec<u32> = (0..count).rev().collect();
            assert_eq!(repeated(&columns), None);
            columns[0] = 0;
            assert_eq!(repeated(&columns), Some(0), "{count}");
        }
    }

    proptest! {
        #[test]
        fn any_decision_is_safe_to_read(
            offsets in proptest::collection::vec(any::<u32>(), 1..9),
            columns in proptest::collection::vec(0..6_u32, 0..9),
            weights in proptest::collection::vec(any::<f32>(), 0..9),
        ) {
            let decision = Decision { offsets, columns, weights };
            for picks in rows(&decision, 4).into_iter().flatten() {
                prop_assert!(picks.len() <= 4);
                prop_assert!(picks.iter().all(|(column, weight)| *column < 4 && weight.is_finite()));
            }
        }
    }
}
