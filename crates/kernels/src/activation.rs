//! `gate[i] = silu(gate[i]) * up[i]`, silu(x) = x / (1 + e^-x): the gated MLP of Llama.

use crate::Isa;
use crate::isa::multiversion;
use crate::lanes::exp;
use crate::pool::{DisjointMut, ThreadPool};

/// Overwrites `gate` with `silu(gate) * up`.
///
/// # Panics
/// When lengths differ.
pub fn silu_mul(pool: &ThreadPool, isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    let gate = DisjointMut::new(gate);
    pool.run(up.len(), 16 * 1024, |range| {
        // SAFETY: claimed ranges are disjoint.
        silu_mul_range(isa, unsafe { gate.slice(range.clone()) }, &up[range]);
    });
}

multiversion! {
    fn silu_mul_range(gate: &mut [f32], up: &[f32]) = silu_mul_body
}

#[inline(always)]
fn silu_mul_body<const FMA: bool>(gate: &mut [f32], up: &[f32]) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp::<FMA>(-*gate)) * up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_f64_reference() {
        let gate: Vec<f32> = (0..1000).map(|i| (i as f32 - 500.0) * 0.2).collect();
        let up: Vec<f32> = (0..1000).map(|i| (i % 17) as f32 - 8.0).collect();
        for isa in Isa::available() {
            let mut got = gate.clone();
            silu_mul(&ThreadPool::new(1), isa, &mut got, &up);
            for i in 0..1000 {
                let x = f64::from(gate[i]);
                let want = x / (1.0 + (-x).exp()) * f64::from(up[i]);
                assert!((f64::from(got[i]) - want).abs() <= 1e-5 * want.abs() + 1e-6, "{x}");
            }
        }
    }
}
