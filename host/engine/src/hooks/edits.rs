//! Edits of hidden states.

use polyskill_adapters::edits::Point;

use crate::hooks::RowSpan;

/// Edits hidden states, `[rows, width]`, at one point of one layer. Positions that modules put
/// before the sequence are not edited, and edits act in the order of their modules.
pub(crate) fn edit(spans: &[RowSpan], point: Point, layer: usize, hidden: &mut [f32]) {
    let Some(last) = spans.last() else { return };
    let width = hidden.len() / last.rows.end;
    for span in spans {
        let parts = &span.composition.parts;
        let Some(edits) = parts.edits.get(&(point, layer)) else { continue };
        let start_len = parts.start_len();
        for row in span.rows.clone() {
            let position = span.position + row - span.rows.start;
            let Some(index) = position.checked_sub(start_len) else { continue };
            let hidden = &mut hidden[row * width..(row + 1) * width];
            for &(module, weight, at) in edits {
                let edit =
                    span.composition.weights(module).and_then(|weights| weights.edits().nth(at));
                let edit =
                    edit.filter(|edit| edit.positions.covers(index, span.prompt_len - start_len));
                if let Some(edit) = edit {
                    edit.apply(weight, hidden);
                }
            }
        }
    }
}
