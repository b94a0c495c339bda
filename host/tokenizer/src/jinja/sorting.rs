//! Sorting as Python does it: stable, in terms of `<` alone, and stopped by the first comparison that fails.

use super::error::JinjaError;

/// Items in ascending order. Those of which neither is less keep their order. Any `less` gives some
/// order, also one that contradicts itself, as `<` does with NaN. It is called n log n times for n
/// items at most.
///
/// # Errors
/// The first of `less`.
pub(super) fn sorted<T>(
    items: Vec<T>,
    less: impl Fn(&T, &T) -> Result<bool, JinjaError>,
) -> Result<Vec<T>, JinjaError> {
    let mut runs: Vec<Vec<T>> = items.into_iter().map(|item| vec![item]).collect();
    while runs.len() > 1 {
        let mut longer = Vec::with_capacity(runs.len().div_ceil(2));
        let mut runs_left = runs.into_iter();
        while let Some(left) = runs_left.next() {
            longer.push(match runs_left.next() {
                Some(right) => merged(left, right, &less)?,
                None => left,
            });
        }
        runs = longer;
    }
    Ok(runs.pop().unwrap_or_default())
}

/// Two sorted runs as one; of equal items those of `left` come first.
fn merged<T>(
    left: Vec<T>,
    right: Vec<T>,
    less: &impl Fn(&T, &T) -> Result<bool, JinjaError>,
) -> Result<Vec<T>, JinjaError> {
    let mut out = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let takes_right = less(b, a)?;
        out.extend(if takes_right { right.next() } else { left.next() });
    }
    out.extend(left);
    out.extend(right);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_sorted_stably_whatever_less_says() {
        let less = |a: &(f64, u8), b: &(f64, u8)| Ok(a.0 < b.0);
        let items = vec![(3.0, 0), (1.0, 1), (3.0, 2), (2.0, 3), (1.0, 4)];
        let found = sorted(items, less).unwrap();
        assert_eq!(found, [(1.0, 1), (1.0, 4), (2.0, 3), (3.0, 0), (3.0, 2)]);
        // No total order: NaN among numbers, and a comparison that always holds.
        for count in 0..200_u8 {
            let items =
                (0..count).map(|at| (if at % 3 == 1 { f64::NAN } else { -f64::from(at) }, at));
            let mut kept: Vec<u8> =
                sorted(items.collect(), less).unwrap().into_iter().map(|(_, at)| at).collect();
            kept.sort_unstable();
            assert_eq!(kept, (0..count).collect::<Vec<_>>());
            let all = sorted((0..count).collect(), |_: &u8, _: &u8| Ok(true)).unwrap();
            assert_eq!(all.len(), usize::from(count));
        }
    }

    #[test]
    fn a_failed_comparison_ends_the_sorting() {
        let fails = |a: &u8, b: &u8| match (a, b) {
            (7, _) | (_, 7) => Err(JinjaError::of_type("no order")),
            _ => Ok(a < b),
        };
        assert_eq!(sorted(vec![3, 7, 1], fails).unwrap_err().message, "no order");
        assert_eq!(sorted(vec![7], fails).unwrap(), [7]);
    }
}
