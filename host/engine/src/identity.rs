//! Identities: SHA-256 over named fields with their lengths.
//!
//! A composition's digest is logged, traced and compared across processes, so it must not move when
//! a type of another crate changes how it prints. Every field is written by hand here; a new op of
//! a program does not compile until it is written too.

use polyskill_adapters::Generation;
use polyskill_adapters::apply::Combine;
use polyskill_sdk::experts::{ExpertOp, ExpertProgram};
use polyskill_sdk::gate::{self, Argument, Op, Program, Share, SiteSelector};

/// Version of the fields, part of every identity. It is raised when the fields or their order
/// change.
const VERSION: u64 = 2;

/// The fields of an identity as bytes, each with its length, so that no two lists of fields
/// collide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fields(Vec<u8>);

/// A value that is part of identities.
pub(crate) trait Identity {
    /// Writes all that tells the value from others of its type.
    fn write(&self, fields: &mut Fields);
}

impl Fields {
    /// No fields yet; `kind` keeps identities of different things apart.
    pub(crate) fn of(kind: &str) -> Self {
        let mut fields = Self(Vec::new());
        fields.text(kind).number(VERSION);
        fields
    }

    /// Text, with its length.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Bytes, with their length.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    /// A number in eight bytes.
    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// A value's own fields.
    pub(crate) fn value(&mut self, value: &impl Identity) -> &mut Self {
        value.write(self);
        self
    }

    /// Values in their order, with their count; equal values in another order are another identity.
    pub(crate) fn list<T: Identity>(&mut self, values: &[T]) -> &mut Self {
        self.number(values.len() as u64);
        values.iter().for_each(|value| value.write(self));
        self
    }

    /// The hash of all fields, SHA-256.
    pub(crate) fn digest(&self) -> Generation {
        Generation::of(&[&self.0])
    }
}

/// A number's bits: 0 and −0 are told apart.
impl Identity for f32 {
    fn write(&self, fields: &mut Fields) {
        fields.number(u64::from(self.to_bits()));
    }
}

impl Identity for u32 {
    fn write(&self, fields: &mut Fields) {
        fields.number(u64::from(*self));
    }
}

/// A module's index and its weight.
impl Identity for (u32, f32) {
    fn write(&self, fields: &mut Fields) {
        fields.value(&self.0).value(&self.1);
    }
}

/// A mark, and the value where there is one.
impl<T: Identity> Identity for Option<T> {
    fn write(&self, fields: &mut Fields) {
        match self {
            None => fields.number(0),
            Some(value) => fields.number(1).value(value),
        };
    }
}

/// The name of the rule, as in plans.
impl Identity for Combine {
    fn write(&self, fields: &mut Fields) {
        fields.text(match self {
            Self::OutputSum => "output-sum",
            Self::AbMerge => "ab-merge",
        });
    }
}

/// Sites, sharing, ops and rule. Rows that the ops multiply with are not part of it: their names
/// are.
impl Identity for Program {
    fn write(&self, fields: &mut Fields) {
        match &self.sites {
            SiteSelector::All => fields.text("all"),
            SiteSelector::Listed(sites) => fields.text("listed").list(sites),
        };
        fields.text(match self.share {
            Share::Site => "site",
            Share::Group => "group",
            Share::Layer => "layer",
        });
        fields.list(&self.ops);
        fields.text(match self.combine {
            gate::Combine::OutputSum => "output-sum",
            gate::Combine::AbMerge => "ab-merge",
        });
    }
}

/// The name of the op, and its arguments.
impl Identity for Op {
    fn write(&self, fields: &mut Fields) {
        fields.text(self.name());
        for (_, argument) in self.arguments() {
            match argument {
                Argument::Flag(flag) => fields.number(u64::from(flag)),
                Argument::Count(count) => fields.value(&count),
                Argument::Number(number) => fields.value(&number),
                Argument::Text(text) => fields.text(text),
                Argument::Numbers(numbers) => fields.list(numbers),
            };
        }
    }
}

/// Layers, ops, and the policy that it names by its index in the snapshot.
impl Identity for ExpertProgram {
    fn write(&self, fields: &mut Fields) {
        fields.list(&self.layers).list(&self.ops).value(&self.module);
    }
}

/// The name of the op, and its arguments.
impl Identity for ExpertOp {
    fn write(&self, fields: &mut Fields) {
        fields.text(self.name());
        match self {
            Self::LoadNativeLogits | Self::Softmax | Self::Emit => fields,
            Self::Mask { keep } => fields.list(keep),
            Self::TopK { k } => fields.value(k),
            Self::SkipRatio { beta } => fields.value(beta),
            Self::Renormalise { epsilon } => fields.value(epsilon),
            Self::Alias { targets } => fields.list(targets),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(ops: Vec<Op>) -> Program {
        let (share, combine) = (Share::Site, gate::Combine::OutputSum);
        Program { sites: SiteSelector::All, share, ops, combine }
    }

    fn digest(value: &impl Identity) -> String {
        Fields::of("test").value(value).digest().to_string()
    }

    /// Traces and logs of other processes carry these: they change with [`VERSION`] alone.
    #[test]
    fn identities_stay_what_they_are() {
        let ops = vec![
            Op::LoadInput,
            Op::Linear { name: "gate".to_owned() },
            Op::TopK { k: 2 },
            Op::Route { hidden: true, arguments: vec![0.5] },
        ];
        let known = "5352303539b101349cfe3608ca136c8a9a816f67322df0830f64ab47e74b91e7";
        assert_eq!(digest(&program(ops)), known);
    }

    #[test]
    fn fields_do_not_run_together() {
        let linear = |name: &str| Op::Linear { name: name.to_owned() };
        let different = [
            program(vec![linear("ab")]),
            program(vec![linear("a"), linear("b")]),
            program(vec![linear("a"), Op::TopK { k: 1 }]),
            program(vec![linear("a"), Op::TopK { k: 2 }]),
            program(vec![Op::Route { hidden: false, arguments: vec![] }]),
            program(vec![Op::Route { hidden: false, arguments: vec![0.0] }]),
            program(vec![Op::Route { hidden: false, arguments: vec![-0.0] }]),
            program(vec![Op::LayerNorm { epsilon: 1.0 }]),
            program(vec![Op::Renormalise { epsilon: 1.0 }]),
        ];
        let digests: std::collections::BTreeSet<_> = different.iter().map(digest).collect();
        assert_eq!(digests.len(), different.len());
    }
}
