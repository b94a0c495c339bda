//! Edits of hidden states: steering vectors, task vectors, soft injection.
//!
//! Function vectors are added to the residual stream (Todd et al., 2023), in-context task vectors
//! replace it (Hendel et al., 2023), and soft injection mixes task embeddings into the heads'
//! outputs before the output projection (SNU-DRL's Soft Injection, 2025).

/// The hidden state of a layer that an edit changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// The residual stream after the layer, `[hidden_size]`. It is also the input of the next
    /// layer.
    Residual,
    /// The heads' outputs before the output projection, `[num_heads · head_dim]`.
    Heads,
}

/// The tokens of a sequence whose hidden states are edited; positions before the prompt never are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Every token of the prompt and every generated one.
    All,
    /// The last token of the prompt.
    LastPrompt,
    /// The last token of the prompt and every generated one.
    FromLastPrompt,
}

impl Positions {
    /// True for a token that is edited: `index` counts prompt and generated tokens from 0,
    /// `prompt_len` those of the prompt.
    pub fn covers(self, index: usize, prompt_len: usize) -> bool {
        match self {
            Self::All => true,
            Self::LastPrompt => index + 1 == prompt_len,
            Self::FromLastPrompt => index + 1 >= prompt_len,
        }
    }
}

/// One edit of a hidden state, at one point of one layer.
#[derive(Clone, Debug)]
pub struct ActivationEdit {
    /// Layer number, from 0.
    pub layer: usize,
    /// The hidden state that is edited.
    pub point: Point,
    /// The tokens at which it is edited.
    pub positions: Positions,
    /// v, as wide as the hidden state.
    pub vector: Vec<f32>,
    /// α per feature, as wide as v, where v is mixed in, h += w·α ⊙ (v − h); else v is added, h +=
    /// w·v. With α = 1 and w = 1 v replaces h.
    pub mix: Option<Vec<f32>>,
}

impl ActivationEdit {
    /// Edits one token's hidden state in place, with weight w.
    ///
    /// # Panics
    /// If `hidden` is not as wide as the vector.
    pub fn apply(&self, weight: f32, hidden: &mut [f32]) {
        assert_eq!(hidden.len(), self.vector.len(), "an edit of another width");
        match &self.mix {
            None => {
                let pairs = hidden.iter_mut().zip(&self.vector);
                pairs.for_each(|(hidden, vector)| *hidden += weight * vector);
            }
            Some(alpha) => {
                let triples = hidden.iter_mut().zip(&self.vector).zip(alpha);
                triples.for_each(|((hidden, vector), alpha)| {
                    *hidden += weight * alpha * (vector - *hidden);
                });
            }
        }
    }

    /// Bytes of weights.
    pub fn num_bytes(&self) -> usize {
        4 * (self.vector.len() + self.mix.as_ref().map_or(0, Vec::len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_mixing_and_replacing() {
        let edit = |mix| ActivationEdit {
            layer: 0,
            point: Point::Residual,
            positions: Positions::All,
            vector: vec![2.0, 4.0],
            mix,
        };
        let applied = |mix, weight| {
            let mut hidden = [1.0, 1.0];
            edit(mix).apply(weight, &mut hidden);
            hidden
        };
        assert_eq!(applied(None, 0.5), [2.0, 3.0]);
        assert_eq!(applied(Some(vec![1.0, 1.0]), 1.0), [2.0, 4.0]);
        assert_eq!(applied(Some(vec![0.5, 0.0]), 1.0), [1.5, 1.0]);
    }

    #[test]
    fn positions_follow_the_prompt_end() {
        let covered = |positions: Positions| (0..5).map(move |index| positions.covers(index, 3));
        assert!(covered(Positions::All).all(|covered| covered));
        assert!(covered(Positions::LastPrompt).eq([false, false, true, false, false]));
        assert!(covered(Positions::FromLastPrompt).eq([false, false, true, true, true]));
    }
}
