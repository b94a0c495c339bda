//! The ways to merge, as data.

use super::sparse::{Consensus, Divisor, Prune, Rescale, Sign};

/// A way to merge modules; see the table in this crate's README for the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method(&'static Recipe);

impl Method {
    /// All methods, in the order in which they are listed for users.
    pub fn all() -> impl Iterator<Item = Self> {
        RECIPES.iter().map(Self)
    }

    /// The method of a name; `None` if there is none of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|method| method.name() == name)
    }

    /// Its name, as users write it. Methods whose names start with `peft-` or `mergekit-` follow
    /// those programs.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Its effect, in a line.
    pub fn about(self) -> &'static str {
        self.0.about
    }

    /// The data that it consists of.
    pub(crate) fn recipe(self) -> &'static Recipe {
        self.0
    }
}

/// The steps of a method, as data that [`merge`](super::merge::merge) goes by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recipe {
    /// The method's name.
    pub(crate) name: &'static str,
    /// Its effect, in a line, for lists of methods and for cards.
    pub(crate) about: &'static str,
    /// The tensors that are summed.
    pub(crate) space: Space,
    /// The pruning of each tensor before the sum.
    pub(crate) prune: Prune,
    /// The signs that may be asked for, the usual one first; none if signs are not elected.
    pub(crate) signs: &'static [Sign],
    /// The divisor of the sum. Without signs it is [`Divisor::Weights`] for a mean, else it is not
    /// used.
    pub(crate) divisor: Divisor,
    /// The condition for a lower rank.
    pub(crate) cut: Cut,
    /// True where a module's scale is applied twice, as some versions of PEFT do where they
    /// decompose deltas.
    pub(crate) squared: bool,
}

impl Recipe {
    /// The election of signs, by the rule that was asked for or by the usual one; `None` if signs
    /// are not elected.
    pub(crate) fn consensus(&self, asked: Option<Sign>) -> Option<Consensus> {
        let usual = *self.signs.first()?;
        Some(Consensus { sign: asked.unwrap_or(usual), divisor: self.divisor })
    }

    /// True if elements are dropped at random, so that the seed matters.
    pub(crate) fn is_random(&self) -> bool {
        matches!(self.prune, Prune::Random(_))
    }

    /// True for the methods that do as PEFT's `add_weighted_adapter` does.
    pub(crate) fn is_pefts(&self) -> bool {
        self.name.starts_with("peft-")
    }
}

/// The tensors that are summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Deltas, summed exactly as factors that stand side by side: the rank is the sum of the ranks.
    Sum,
    /// Two deltas, on the arc between them, as factors too.
    Arc,
    /// A and B, each for itself, so ranks must be equal. The product is not the sum of the
    /// products.
    Parts,
    /// Deltas as dense matrices, for methods that look at their elements.
    Dense,
}

/// The condition under which a singular value decomposition brings the rank down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Never: the rank is what the sum gives.
    Never,
    /// If a rank is asked for.
    Asked,
    /// Always, to the highest rank among the sources if none is asked for.
    Always,
}

/// The exact weighted sum, and the fields that most methods share.
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
/// Sums of A and of B.
const PARTS: Recipe = Recipe {
    name: "peft-linear",
    about: "weighted sums of A and of B, as PEFT",
    space: Space::Parts,
    ..SUM
};
/// Pruned deltas, summed dense and cut to a rank.
const DENSE: Recipe = Recipe {
    name: "magnitude-prune",
    about: "the weighted sum of deltas without their small elements",
    space: Space::Dense,
    prune: Prune::Magnitude,
    cut: Cut::Always,
    ..SUM
};
/// DARE as in its paper.
const DARE: Prune = Prune::Random(Rescale::Density);
/// DARE as mergekit rescales it.
const MERGEKIT_DARE: Prune = Prune::Random(Rescale::Magnitudes);
/// All rules of an election; the usual one is by weight.
const ANY_SIGN: &[Sign] = &[Sign::Weighted, Sign::Total, Sign::Frequency];
/// The rules that PEFT knows as `total` and `frequency`.
const PEFT_SIGNS: &[Sign] = &[Sign::Total, Sign::Frequency];
/// The mean of those that agree.
const COUNT: Divisor = Divisor::Count;

/// All methods, ours first, then PEFT's and mergekit's.
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
