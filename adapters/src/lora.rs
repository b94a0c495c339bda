//! Low-rank adapters: y += w·s·B·(A·x) (Hu et al., "LoRA", 2021).

use polyskill_model::Site;
use polyskill_model::kernels::WeightSlice;

/// Elements of a weight, in the precision that they came in.
#[derive(Clone, Debug)]
pub enum Elements {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// bfloat16 bit patterns.
    Bf16(Vec<u16>),
    /// IEEE half bit patterns.
    F16(Vec<u16>),
}

impl Elements {
    /// Values rounded to half precision.
    pub fn f16(values: &[f32]) -> Self {
        Self::F16(values.iter().map(|&value| half::f16::from_f32(value).to_bits()).collect())
    }

    /// The elements for the kernels.
    pub fn as_slice(&self) -> WeightSlice<'_> {
        match self {
            Self::F32(values) => WeightSlice::F32(values),
            Self::Bf16(values) => WeightSlice::Bf16(values),
            Self::F16(values) => WeightSlice::F16(values),
        }
    }

    /// Bytes held.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::F32(values) => 4 * values.len(),
            Self::Bf16(values) | Self::F16(values) => 2 * values.len(),
        }
    }

    /// Swaps rows and columns of a `[rows, columns]` matrix.
    pub fn transposed(&self, rows: usize, columns: usize) -> Self {
        fn swap<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
            (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect()
        }
        match self {
            Self::F32(values) => Self::F32(swap(values, rows, columns)),
            Self::Bf16(values) => Self::Bf16(swap(values, rows, columns)),
            Self::F16(values) => Self::F16(swap(values, rows, columns)),
        }
    }
}

/// A LoRA at one site.
#[derive(Clone, Debug)]
pub struct LoraSite {
    /// r.
    pub rank: usize,
    /// Factor on B·A: α/r, or α/√r with rsLoRA.
    pub scale: f32,
    /// A, `[rank, inputs]`.
    pub a: Elements,
    /// Bᵀ, `[rank, outputs]`: each row is one column of B, contiguous for the kernels.
    pub b_transposed: Elements,
}

/// A LoRA module, indexed by site.
#[derive(Clone, Debug, Default)]
pub struct Lora {
    sites: Vec<Option<LoraSite>>,
}

impl Lora {
    /// An empty module for a model with `num_sites` sites.
    pub fn new(num_sites: usize) -> Self {
        Self { sites: vec![None; num_sites] }
    }

    /// The weights at a site, if the module acts there.
    pub fn at(&self, site: Site) -> Option<&LoraSite> {
        self.sites.get(site.index())?.as_ref()
    }

    /// Puts weights at a site.
    ///
    /// # Panics
    /// If the model has no such site.
    pub fn set(&mut self, site: Site, weights: LoraSite) {
        self.sites[site.index()] = Some(weights);
    }

    /// The sites where the module acts, ascending.
    pub fn sites(&self) -> impl Iterator<Item = (Site, &LoraSite)> {
        let all = self.sites.iter().enumerate();
        all.filter_map(|(index, site)| Some((Site::from_index(index), site.as_ref()?)))
    }

    /// Bytes of weights.
    pub fn num_bytes(&self) -> usize {
        self.sites().map(|(_, site)| site.a.num_bytes() + site.b_transposed.num_bytes()).sum()
    }
}
