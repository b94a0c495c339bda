//! The ways to merge, as data.

use super::sparse::{Consensus, Divisor, Prune, Rescale, Sign};

/// A way to merge modules; see the table in this crate's README for the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method(&'static Recipe);

impl Method {
    /// All methods.
    pub fn all() -> impl Iterator<Item = Self> {
        RECIPES.iter().map(Self)
    }

    /// The method of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|method| method.name() == name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// What it does, in a line.
    pub fn about(self) -> &'static str {
        self.0.about
    }

    pub(crate) fn recipe(self) -> &'static Recipe {
        self.0
    }
}

/// What a method does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) space: Space,
    pub(crate) prune: Prune,
    /// The signs that may be asked for, the usual one first; none if signs are not elected.
    pub(crate) signs: &'static [Sign],
    pub(crate) divisor: Divisor,
    pub(crate) cut: Cut,
    /// Whether a module's scale is applied twice, as some versions of PEFT do where they decompose deltas.
    pub(crate) squared: bool,
}

impl Recipe {
    pub(crate) fn consensus(&self, asked: Option<Sign>) -> Option<Consensus> {
        let usual = *self.signs.first()?;
        Some(Consensus { sign: asked.unwrap_or(usual), divisor: self.divisor })
    }

    pub(crate) fn is_random(&self) -> bool {
        matches!(self.prune, Prune::Random(_))
    }

    pub(crate) fn is_pefts(&self) -> bool {
        self.name.starts_with("peft-")
    }
}

/// What is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Deltas, summed exactly as factors that stand side by side.
    Sum,
    /// Two deltas, on the arc between them, as factors too.
    Arc,
    /// A and B, each for itself.
    Parts,
    /// Deltas as dense matrices.
    Dense,
}

/// When a singular value decomposition brings the rank down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Never,
    /// If a rank is asked for.
    Asked,
    Always,
}

const SUM: Recipe = Recipe {
    name: "cat",
    about: "the exact weighted sum, by concatenation",
    space: Space::Sum,
    prune: Prune::Nothing,
    signs: &[],
    divisor: Divisor::One,
    cut: Cut::Never,
    squared: false,
};
const PARTS: Recipe = Recipe {
    name: "peft-linear",
    about: "weighted sums of A and of B, as PEFT",
    space: Space::Parts,
    ..SUM
};
const DENSE: Recipe = Recipe {
    name: "magnitude-prune",
    about: "the weighted sum of deltas without their small elements",
    space: Space::Dense,
    prune: Prune::Magnitude,
    cut: Cut::Always,
    ..SUM
};
const DARE: Prune = Prune::Random(Rescale::Density);
const MERGEKIT_DARE: Prune = Prune::Random(Rescale::Magnitudes);
const ANY_SIGN: &[Sign] = &[Sign::Weighted, Sign::Total, Sign::Frequency];
const PEFT_SIGNS: &[Sign] = &[Sign::Total, Sign::Frequency];
const COUNT: Divisor = Divisor::Count;

static RECIPES: [Recipe; 17] = [
    SUM,
    Recipe { name: "svd", about: "the exact weighted sum, cut to a rank", cut: Cut::Always, ..SUM },
    Recipe {
        name: "ties",
        about: "TIES on deltas: prune, elect signs, mean of those that agree",
        signs: ANY_SIGN,
        divisor: COUNT,
        ..DENSE
    },
    Recipe {
        name: "dare-linear",
        about: "DARE on deltas: drop at random, rescale, weighted sum",
        prune: DARE,
        ..DENSE
    },
    Recipe {
        name: "dare-ties",
        about: "TIES with DARE's dropping in place of pruning",
        prune: DARE,
        signs: ANY_SIGN,
        divisor: COUNT,
        ..DENSE
    },
    DENSE,
    Recipe {
        name: "slerp",
        about: "the arc between two deltas, at --t",
        space: Space::Arc,
        cut: Cut::Asked,
        ..SUM
    },
    PARTS,
    Recipe { name: "peft-cat", ..SUM },
    Recipe {
        name: "peft-svd",
        about: "the sum cut to a rank, scales applied twice, as some versions of PEFT do",
        cut: Cut::Always,
        squared: true,
        ..SUM
    },
    Recipe {
        name: "peft-ties",
        about: "TIES on A and on B, as PEFT",
        prune: Prune::Magnitude,
        signs: PEFT_SIGNS,
        divisor: COUNT,
        ..PARTS
    },
    Recipe {
        name: "peft-ties-svd",
        about: "TIES on deltas, scales applied twice, as some versions of PEFT do",
        signs: PEFT_SIGNS,
        divisor: COUNT,
        squared: true,
        ..DENSE
    },
    Recipe {
        name: "peft-magnitude-prune",
        about: "weighted sums of pruned A and of pruned B, as PEFT",
        prune: Prune::Magnitude,
        ..PARTS
    },
    Recipe {
        name: "mergekit-linear",
        about: "the weighted mean, as mergekit",
        divisor: Divisor::Weights,
        cut: Cut::Asked,
        ..SUM
    },
    Recipe {
        name: "mergekit-ties",
        about: "TIES on deltas with weights as votes and divisor, as mergekit",
        signs: &[Sign::Weighted],
        divisor: Divisor::Weights,
        ..DENSE
    },
    Recipe {
        name: "mergekit-dare-linear",
        about: "DARE that keeps the sum of magnitudes, as mergekit",
        prune: MERGEKIT_DARE,
        ..DENSE
    },
    Recipe {
        name: "mergekit-dare-ties",
        about: "the same with elected signs, as mergekit",
        prune: MERGEKIT_DARE,
        signs: &[Sign::Weighted],
        ..DENSE
    },
];
