//! Vectors of f32 on the instruction sets that the dense kernels are compiled for.

use std::sync::OnceLock;

/// An instruction set that kernels are specialised for.
///
/// Kernels are compiled for all of them in one binary and chosen per call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, VL and VNNI.
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Any other CPU: plain Rust that the compiler vectorises as far as it may.
    Portable,
}

/// The widest instruction set of this CPU that has kernels.
///
/// Detected once per process. No kernel runs for an instruction set wider than this one.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(detect)
}

/// AVX-512 counts only on a CPU that has AVX2, FMA and F16C too.
#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni");
    match (avx512 && avx2, avx2) {
        (true, _) => Isa::Avx512,
        (false, true) => Isa::Avx2,
        (false, false) => Isa::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Portable
}

/// A vector of f32 on one instruction set.
///
/// Methods are only called from functions compiled for the instruction set, and inlined into them.
/// Pointers need no alignment and must be valid for `LANES` elements.
pub(super) trait Simd {
    /// The register's type.
    type V: Copy;
    /// Elements per vector; divides 16.
    const LANES: usize;
    /// All lanes zero.
    unsafe fn zero() -> Self::V;
    /// All lanes the same value.
    unsafe fn splat(value: f32) -> Self::V;
    /// `LANES` floats from memory.
    unsafe fn load(source: *const f32) -> Self::V;
    /// `LANES` bfloat16 bit patterns as f32, which is exact.
    unsafe fn load_bf16(source: *const u16) -> Self::V;
    /// `LANES` IEEE half bit patterns as f32, which is exact.
    unsafe fn load_f16(source: *const u16) -> Self::V;
    /// Writes `LANES` floats.
    unsafe fn store(target: *mut f32, value: Self::V);
    /// `a · b + c`, rounded once.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sum of the lanes, in an order that is fixed for the instruction set.
    unsafe fn sum(value: Self::V) -> f32;
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// 512-bit vectors.
    pub(in super::super) struct Avx512;

    impl Simd for Avx512 {
        type V = __m512;
        const LANES: usize = 16;
        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: called only where AVX-512 is enabled; the same holds for every method below,
            // and pointers are valid for `LANES` elements by the callers' bounds.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> __m512 {
            // SAFETY: see `zero`.
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(source: *const f32) -> __m512 {
            // SAFETY: see `zero`.
            unsafe { _mm512_loadu_ps(source) }
        }
        #[inline(always)]
        unsafe fn load_bf16(source: *const u16) -> __m512 {
            // SAFETY: see `zero`.
            unsafe {
                let half = _mm256_loadu_si256(source.cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(source: *const u16) -> __m512 {
            // SAFETY: see `zero`.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.cast())) }
        }
        #[inline(always)]
        unsafe fn store(target: *mut f32, value: __m512) {
            // SAFETY: see `zero`.
            unsafe { _mm512_storeu_ps(target, value) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: see `zero`.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(value: __m512) -> f32 {
            // SAFETY: see `zero`.
            unsafe { _mm512_reduce_add_ps(value) }
        }
    }

    /// 256-bit vectors with fused multiply-add and conversion of halves.
    pub(in super::super) struct Avx2;

    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        #[inline(always)]
        unsafe fn zero() -> __m256 {
            // SAFETY: called only where AVX2, FMA and F16C are enabled; pointers as above.
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> __m256 {
            // SAFETY: see `zero`.
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(source: *const f32) -> __m256 {
            // SAFETY: see `zero`.
            unsafe { _mm256_loadu_ps(source) }
        }
        #[inline(always)]
        unsafe fn load_bf16(source: *const u16) -> __m256 {
            // SAFETY: see `zero`.
            unsafe {
                let half = _mm_loadu_si128(source.cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(source: *const u16) -> __m256 {
            // SAFETY: see `zero`.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(source.cast())) }
        }
        #[inline(always)]
        unsafe fn store(target: *mut f32, value: __m256) {
            // SAFETY: see `zero`.
            unsafe { _mm256_storeu_ps(target, value) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: see `zero`.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(value: __m256) -> f32 {
            // SAFETY: see `zero`.
            unsafe {
                let low = _mm256_castps256_ps128(value);
                let four = _mm_add_ps(low, _mm256_extractf128_ps::<1>(value));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
    }
}

/// Eight lanes in plain Rust.
pub(super) struct Portable;

impl Simd for Portable {
    type V = [f32; 8];
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 8] {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn load(source: *const f32) -> [f32; 8] {
        // SAFETY: the callers' bounds make the pointer valid for `LANES` elements; also below.
        unsafe { source.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(source: *const u16) -> [f32; 8] {
        // SAFETY: see `load`.
        let bits = unsafe { source.cast::<[u16; 8]>().read_unaligned() };
        bits.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(source: *const u16) -> [f32; 8] {
        // SAFETY: see `load`.
        let bits = unsafe { source.cast::<[u16; 8]>().read_unaligned() };
        bits.map(|bits| half::f16::from_bits(bits).to_f32())
    }
    #[inline(always)]
    unsafe fn store(target: *mut f32, value: [f32; 8]) {
        // SAFETY: see `load`.
        unsafe { target.cast::<[f32; 8]>().write_unaligned(value) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }
    #[inline(always)]
    unsafe fn sum(value: [f32; 8]) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|lane| value[lane] + value[lane + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
}
