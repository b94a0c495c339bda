//! Kinds of modules.

/// The kind of a module, by what it changes in the forward pass; for reports, and for routers that
/// choose by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// Low-rank products at linears (Hu et al., 2021), and biases, a head or tokens that were
    /// trained beside them.
    Lora,
    /// LoRA with magnitudes (Liu et al., "DoRA", 2024).
    Dora,
    /// (IA)³: vectors that scale outputs or inputs of linears (Liu et al., 2022).
    Ia3,
    /// Embeddings before the sequence: prompt tuning and P-tuning.
    SoftPrompt,
    /// Keys and values before the sequence: prefix tuning, or a document that was read once.
    KvPrefix,
    /// New embeddings of some tokens: PEFT's trainable tokens.
    TokenEmbeddings,
    /// Edits of hidden states: steering and task vectors, control vectors of GGUF files.
    ActivationEdit,
    /// A few changed weights per linear.
    SparseGraft,
    /// A choice among the experts of a sparse base: some are dropped, skipped or merged.
    ExpertPolicy,
    /// Feed-forwards beside the base's own, as in branch-train-mix.
    Expert,
}

impl Kind {
    /// The name in reports and for routers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Dora => "dora",
            Self::Ia3 => "ia3",
            Self::SoftPrompt => "soft-prompt",
            Self::KvPrefix => "kv-prefix",
            Self::TokenEmbeddings => "token-embeddings",
            Self::ActivationEdit => "activation-edit",
            Self::SparseGraft => "sparse-graft",
            Self::ExpertPolicy => polyskill_sdk::experts::POLICY_KIND,
            Self::Expert => polyskill_sdk::experts::EXPERT_KIND,
        }
    }
}
