//! Rotary position embedding (Su et al. 2021), the "rotate half" pairing of Hugging Face models:
//! `(x[i], x[i + D/2]) *= e^{i p θ_i}` for each head, p the row's position.

use crate::pool::{DisjointMut, ThreadPool};

/// Cosines and sines for every position up to a limit.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[max_positions, dim / 2]` of (cos, sin)
    rotations: Vec<(f32, f32)>,
    half: usize,
}

impl RopeTable {
    /// From the angular frequency of each pair. `scale` multiplies both cosine and sine (YaRN's
    /// attention factor; 1 otherwise).
    #[must_use]
    pub fn new(frequencies: &[f32], max_positions: usize, scale: f32) -> Self {
        let rotations = (0..max_positions)
            .flat_map(|position| {
                frequencies.iter().map(move |&frequency| {
                    // In single precision as transformers computes it, then rounded once.
                    let angle = f64::from(position as f32 * frequency);
                    ((angle.cos() as f32) * scale, (angle.sin() as f32) * scale)
                })
            })
            .collect();
        Self { rotations, half: frequencies.len() }
    }

    /// `[max_positions, half]` of (cos, sin).
    #[must_use]
    pub fn rotations(&self) -> &[(f32, f32)] {
        &self.rotations
    }

    /// Positions that the table covers.
    #[must_use]
    pub fn max_positions(&self) -> usize {
        self.rotations.len() / self.half
    }

    /// Rotates the first `2 * half` values of each head of `x:[T, num_heads, head_dim]`.
    ///
    /// # Panics
    /// When a position is beyond the table.
    pub fn rotate(&self, pool: &ThreadPool, x: &mut [f32], head_dim: usize, positions: &[u32]) {
        let row_width = x.len() / positions.len().max(1);
        let x = DisjointMut::new(x);
        pool.run(positions.len(), 8, |rows| {
            for row in rows {
                // SAFETY: each row is claimed once.
                let x = unsafe { x.slice(row * row_width..(row + 1) * row_width) };
                let start = positions[row] as usize * self.half;
                let rotations = &self.rotations[start..start + self.half];
                for head in x.chunks_exact_mut(head_dim) {
                    let (low, high) = head[..2 * self.half].split_at_mut(self.half);
                    for ((low, high), &(cos, sin)) in low.iter_mut().zip(high).zip(rotations) {
                        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_each_pair_by_position_times_frequency() {
        let table = RopeTable::new(&[1.0, 0.1], 8, 1.0);
        let mut x = vec![1.0, 2.0, 0.0, -1.0, 1.0, 2.0, 0.0, -1.0];
        table.rotate(&ThreadPool::new(1), &mut x, 4, &[0, 3]);
        assert_eq!(&x[..4], &[1.0, 2.0, 0.0, -1.0], "position 0 is the identity");
        let (a, b) = (3.0f32, 0.3f32);
        let want = [a.cos(), 2.0 * b.cos() + b.sin(), a.sin(), 2.0 * b.sin() - b.cos()];
        for (got, want) in x[4..].iter().zip(want) {
            assert!((got - want).abs() < 1e-6);
        }
    }
}
