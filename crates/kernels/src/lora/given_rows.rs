//! Rows that adapters give instead of computed ones: embeddings of tokens, keys and values of prefixes.

use super::PlacedAdapter;
use super::placed::PlacedMatrix;
use crate::lanes::{Bf16, F16};
use crate::vector::Stored;
use weft_types::Dtype;

impl PlacedAdapter {
    /// `out[t,:] = rows[token[t],:]` for tokens with embeddings of their own; zeros for virtual tokens,
    /// from `vocab` on, whose keys and values are given. `out:[T, hidden]` keeps its other rows.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn replace_embeddings(&self, vocab: usize, tokens: &[u32], out: &mut [f32]) {
        let layout = self.layout();
        if layout.token_rows.is_none() && layout.kv_prefix.is_none() {
            return;
        }
        let given = layout.token_rows.as_ref().map(|given| (given, self.matrix(&given.rows)));
        let width = out.len() / tokens.len().max(1);
        for (&token, out) in tokens.iter().zip(out.chunks_exact_mut(width.max(1))) {
            if let Some((given, rows)) = &given
                && let Ok(row) = given.tokens.binary_search(&token)
            {
                widen(rows, row, out);
            } else if layout.kv_prefix.is_some() && token as usize >= vocab {
                out.fill(0.0);
            }
        }
    }

    /// Whether [`Self::kv_prefix_into`] gives anything.
    #[must_use]
    pub fn has_kv_prefix(&self) -> bool {
        self.layout().kv_prefix.is_some()
    }

    /// Appends the keys and values `[kv heads, head dim]` that a layer has for a virtual token; false
    /// for one whose are computed.
    ///
    /// # Panics
    /// When the adapter has fewer layers.
    pub fn kv_prefix_into(
        &self,
        layer: usize,
        virtual_token: usize,
        keys: &mut Vec<f32>,
        values: &mut Vec<f32>,
    ) -> bool {
        let Some(prefix) = &self.layout().kv_prefix else { return false };
        if virtual_token >= prefix.num_tokens {
            return false;
        }
        let rows = self.matrix(&prefix.rows);
        for (is_value, target) in [keys, values].into_iter().enumerate() {
            let start = target.len();
            target.resize(start + rows.cols, 0.0);
            let row = (2 * layer + is_value) * prefix.num_tokens + virtual_token;
            widen(&rows, row, &mut target[start..]);
        }
        true
    }
}

/// A row in single precision.
fn widen(matrix: &PlacedMatrix<'_>, row: usize, out: &mut [f32]) {
    fn each<T: Stored>(bytes: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(T::SIZE)) {
            *out = T::at(bytes);
        }
    }
    assert_eq!(matrix.cols, out.len(), "width of a given row");
    let bytes = matrix.row(row);
    match matrix.dtype {
        Dtype::F32 => each::<f32>(bytes, out),
        Dtype::F16 => each::<F16>(bytes, out),
        Dtype::Bf16 => each::<Bf16>(bytes, out),
        Dtype::I8 => unreachable!("given rows are never quantized"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{noise, place_lowered, tensor, value};
    use super::*;
    use weft_types::{KvPrefix, LoweredAdapter, TokenRows};

    #[test]
    fn listed_tokens_get_their_rows_and_prefixes_zeros() {
        const WIDTH: usize = 20;
        let mut next = noise(1);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let rows = tensor(dtype, 3, WIDTH, &mut next);
            let kv_prefix = Some(KvPrefix { num_tokens: 1, rows: rows.clone() });
            let token_rows = Some(TokenRows { tokens: [4, 9, 31].into(), rows });
            let lowered = LoweredAdapter { token_rows, kv_prefix, ..LoweredAdapter::default() };
            // A page for each row.
            let placed = place_lowered(&lowered, 128);
            let mut out = vec![7.0; 5 * WIDTH];
            placed.replace_embeddings(30, &[9, 5, 30, 31, 4], &mut out);
            let rows = &lowered.token_rows.as_ref().unwrap().rows;
            for (t, row) in [Some(1), None, None, Some(2), Some(0)].into_iter().enumerate() {
                for (i, got) in out[t * WIDTH..(t + 1) * WIDTH].iter().enumerate() {
                    let other = if t == 1 { 7.0 } else { 0.0 };
                    let want = row.map_or(other, |row| value(rows, row, i) as f32);
                    assert_eq!(*got, want, "{dtype:?} row {t}");
                }
            }
        }
    }

    #[test]
    fn a_layer_has_its_own_keys_and_values_of_a_prefix() {
        const WIDTH: usize = 16;
        let (num_layers, num_tokens) = (3, 2);
        let rows = tensor(Dtype::F32, num_layers * 2 * num_tokens, WIDTH, &mut noise(2));
        let kv_prefix = Some(KvPrefix { num_tokens, rows });
        let lowered = LoweredAdapter { kv_prefix, ..LoweredAdapter::default() };
        let placed = place_lowered(&lowered, 192);
        let rows = &lowered.kv_prefix.as_ref().unwrap().rows;
        let want = |row: usize| (0..WIDTH).map(move |i| value(rows, row, i) as f32);
        for layer in 0..num_layers {
            let (mut keys, mut values) = (vec![], vec![]);
            assert!(placed.kv_prefix_into(layer, 1, &mut keys, &mut values));
            assert!(placed.kv_prefix_into(layer, 0, &mut keys, &mut values));
            assert!(!placed.kv_prefix_into(layer, 2, &mut keys, &mut values));
            let first = layer * 2 * num_tokens;
            assert_eq!(keys, want(first + 1).chain(want(first)).collect::<Vec<_>>());
            assert_eq!(values, want(first + 3).chain(want(first + 2)).collect::<Vec<_>>());
        }
    }
}
