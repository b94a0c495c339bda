//! Top right singular vectors of LoRA deltas, exact and as PEFT's Arrow finds them.

use crate::lora::LoraSite;

/// The exact top right singular vector of B·A, `[inputs]`, unit length; zeros if B·A is zero.
///
/// With C = BᵀB = LLᵀ, (BA)ᵀ(BA) = MᵀM for the small M = LᵀA, so an r × r eigenproblem suffices.
/// Its sign is arbitrary. All sums are in f64; the cost is r²·(inputs + outputs) and O(r³) per
/// Jacobi sweep.
pub fn exact(lora: &LoraSite) -> Vec<f32> {
    let rank = lora.rank;
    let a: Vec<f64> = lora.a.as_slice().to_f32().into_iter().map(f64::from).collect();
    let b: Vec<f64> = lora.b_transposed.as_slice().to_f32().into_iter().map(f64::from).collect();
    let inputs = a.len() / rank;
    // The eigenvectors of C give a square root: M = Λ^½ Vᵀ A.
    let (values, vectors) = symmetric_eigen(gram(&b, rank), rank);
    let mut m = vec![0.0; rank * inputs];
    for (i, row) in m.chunks_exact_mut(inputs).enumerate() {
        let root = values[i].max(0.0).sqrt();
        for k in 0..rank {
            let factor = root * vectors[k * rank + i];
            row.iter_mut().zip(&a[k * inputs..]).for_each(|(m, a)| *m += factor * a);
        }
    }
    let (values, vectors) = symmetric_eigen(gram(&m, rank), rank);
    let top = (0..rank).max_by(|&i, &j| values[i].total_cmp(&values[j])).unwrap_or(0);
    let mut v = vec![0.0; inputs];
    for k in 0..rank {
        let factor = vectors[k * rank + top];
        v.iter_mut().zip(&m[k * inputs..]).for_each(|(v, m)| *v += factor * m);
    }
    normalise(&mut v, 0.0);
    v.into_iter().map(|value| value as f32).collect()
}

/// PEFT's estimate (`top_right_singular_vec_from_BA`): `iterations` of w = Aᵀ(C(A·v)) from torch's
/// CPU `randn(inputs)`, without a test of convergence. The seed's low 32 bits count, as the
/// generator takes no more.
pub fn power_iteration(lora: &LoraSite, iterations: u32, seed: u64) -> Vec<f32> {
    let rank = lora.rank;
    let a: Vec<f64> = lora.a.as_slice().to_f32().into_iter().map(f64::from).collect();
    let b: Vec<f64> = lora.b_transposed.as_slice().to_f32().into_iter().map(f64::from).collect();
    let inputs = a.len() / rank;
    let c = gram(&b, rank);
    let mut v: Vec<f64> = torch_randn(inputs, seed).into_iter().map(f64::from).collect();
    normalise(&mut v, 1e-8);
    for _ in 0..iterations {
        let av: Vec<f64> = a.chunks_exact(inputs).map(|row| dot(row, &v)).collect();
        let cav: Vec<f64> = c.chunks_exact(rank).map(|row| dot(row, &av)).collect();
        v.fill(0.0);
        for (row, factor) in a.chunks_exact(inputs).zip(cav) {
            v.iter_mut().zip(row).for_each(|(v, a)| *v += factor * a);
        }
        normalise(&mut v, 1e-8);
    }
    v.into_iter().map(|value| value as f32).collect()
}

/// The inner product of two vectors of one length.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Divides by the length plus ε. A zero vector with ε = 0 stays as it is.
fn normalise(v: &mut [f64], epsilon: f64) {
    let length = dot(v, v).sqrt() + epsilon;
    if length > 0.0 {
        v.iter_mut().for_each(|value| *value /= length);
    }
}

/// M·Mᵀ, `[rank, rank]`, of a `[rank, n]` matrix.
fn gram(m: &[f64], rank: usize) -> Vec<f64> {
    let width = m.len() / rank;
    let row = |i: usize| &m[i * width..(i + 1) * width];
    (0..rank * rank).map(|at| dot(row(at / rank), row(at % rank))).collect()
}

/// Eigenvalues and eigenvectors (columns) of a symmetric matrix, by cyclic Jacobi rotations. The
/// matrix is `[n, n]`. Sweeps end when the squares off the diagonal are under 1e-30 of those on it,
/// or after 64.
fn symmetric_eigen(mut m: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors: Vec<f64> =
        (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    for _ in 0..64 {
        let off: f64 = (0..n * n).filter(|at| at / n != at % n).map(|at| m[at] * m[at]).sum();
        let diagonal: f64 = (0..n).map(|i| m[i * n + i] * m[i * n + i]).sum();
        if off <= 1e-30 * diagonal {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut m, &mut vectors, n, p, q);
            }
        }
    }
    ((0..n).map(|i| m[i * n + i]).collect(), vectors)
}

/// One Jacobi rotation: turns rows and columns `p` and `q` so that `m[p, q]` becomes zero, and the
/// vectors with them. Of the two angles that do so it takes the smaller.
fn rotate(m: &mut [f64], vectors: &mut [f64], n: usize, p: usize, q: usize) {
    let off = m[p * n + q];
    if off == 0.0 {
        return;
    }
    let theta = (m[q * n + q] - m[p * n + p]) / (2.0 * off);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let t = if theta == 0.0 { 1.0 } else { t };
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    let turn = |x: &mut [f64], i: usize, j: usize| {
        let (a, b) = (x[i], x[j]);
        (x[i], x[j]) = (c * a - s * b, s * a + c * b);
    };
    for k in 0..n {
        turn(m, k * n + p, k * n + q);
    }
    for k in 0..n {
        turn(m, p * n + k, q * n + k);
    }
    for k in 0..n {
        turn(vectors, k * n + p, k * n + q);
    }
}

/// torch's CPU `randn(n)` in float32 after `manual_seed(seed)`: Mersenne Twister and Box–Muller,
/// with one path below 16 elements and another from 16 on. From 16 on, values come in blocks of 16,
/// and the last 16 are drawn anew where `n` is no multiple of 16.
pub fn torch_randn(n: usize, seed: u64) -> Vec<f32> {
    let mut twister = Twister::new(seed as u32);
    if n < 16 {
        return randn_pairs(n, &mut twister);
    }
    let mut values: Vec<f32> = (0..n).map(|_| twister.uniform24()).collect();
    for start in (0..=n - 16).step_by(16) {
        box_muller_16(&mut values[start..start + 16]);
    }
    if !n.is_multiple_of(16) {
        let tail = &mut values[n - 16..];
        tail.iter_mut().for_each(|value| *value = twister.uniform24());
        box_muller_16(tail);
    }
    values
}

/// torch's path for fewer than 16 values: one pair after another from 53-bit uniforms, in f64.
fn randn_pairs(n: usize, twister: &mut Twister) -> Vec<f32> {
    let mut values = Vec::with_capacity(n + 1);
    while values.len() < n {
        let (u1, u2) = (twister.uniform53(), twister.uniform53());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let angle = std::f64::consts::TAU * u1;
        values.extend([(radius * angle.cos()) as f32, (radius * angle.sin()) as f32]);
    }
    values.truncate(n);
    values
}

/// Box–Muller in place on 16 uniforms: the first eight give radii, the last eight angles.
fn box_muller_16(values: &mut [f32]) {
    for j in 0..8 {
        let (u1, u2) = (1.0 - f64::from(values[j]), f64::from(values[j + 8]));
        let radius = (-2.0 * u1.ln()).sqrt();
        let angle = std::f64::consts::TAU * u2;
        values[j] = (radius * angle.cos()) as f32;
        values[j + 8] = (radius * angle.sin()) as f32;
    }
}

/// MT19937 (Matsumoto and Nishimura, 1998). torch's CPU generator is this one.
struct Twister {
    /// The state vector.
    state: [u32; 624],
    /// The next word of the state to be given; 624 where all have been.
    at: usize,
}

impl Twister {
    /// The reference's `init_genrand`.
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = previous.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, at: 624 }
    }

    /// The next 32 bits, tempered; every 624 words the state is made anew.
    fn next(&mut self) -> u32 {
        if self.at == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// 24 bits in [0, 1). torch draws 32-bit floats so.
    fn uniform24(&mut self) -> f32 {
        (self.next() & 0xff_ffff) as f32 / 16_777_216.0
    }

    /// 53 bits in [0, 1) from two outputs, the high word first. torch draws 64-bit floats so.
    fn uniform53(&mut self) -> f64 {
        let word = u64::from(self.next()) << 32 | u64::from(self.next());
        (word & ((1 << 53) - 1)) as f64 / 9_007_199_254_740_992.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::Elements;

    fn lora(rank: usize, inputs: usize, outputs: usize) -> LoraSite {
        let value = |at: usize| ((at * 2_654_435_761 % 1_000) as f32 / 500.0) - 1.0;
        LoraSite {
            rank,
            scale: 1.0,
            a: Elements::F32((0..rank * inputs).map(value).collect()),
            b_transposed: Elements::F32((0..rank * outputs).map(|at| value(at + 77)).collect()),
            magnitude: None,
        }
    }

    #[test]
    fn the_exact_vector_is_a_fixed_point_of_the_power_iteration() {
        for (rank, inputs, outputs) in [(1, 5, 3), (2, 24, 10), (4, 33, 20), (8, 64, 16)] {
            let lora = lora(rank, inputs, outputs);
            let exact = exact(&lora);
            let converged = power_iteration(&lora, 5_000, 1);
            let cosine: f32 = exact.iter().zip(&converged).map(|(a, b)| a * b).sum();
            assert!((cosine.abs() - 1.0).abs() < 1e-5, "rank {rank}: |cos| = {}", cosine.abs());
        }
    }

    #[test]
    fn a_zero_delta_has_a_zero_prototype() {
        let mut zero = lora(2, 20, 4);
        zero.b_transposed = Elements::F32(vec![0.0; 8]);
        assert!(exact(&zero).iter().all(|value| *value == 0.0));
        assert!(power_iteration(&zero, 15, 42).iter().all(|value| *value == 0.0));
    }
}
