//! The element type that adapters are kept in. In: an update of an adapter as its file has it. Out: the
//! same in the type that the operator chose, or a sentence about the value that does not fit.

use crate::error::Refusal;
use crate::lower::Update;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use weft_types::{AdapterTensor, Bottleneck, Dtype, EmbeddingUpdate, LowRankUpdate, Module, Site};

/// What adapters' weights are converted to when they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AdapterDtype {
    /// As in the file. Only where a float32 row is larger than a chunk of the device's memory,
    /// float32 becomes float16.
    #[default]
    Auto,
    /// Half precision. An adapter with a value beyond ±65504 is refused.
    F16,
    /// bfloat16.
    Bf16,
    /// Eight-bit integers with a scale for each rank row of A and of Bᵀ, `max|row| / 127`: an error
    /// of at most half a scale for each weight. Embeddings and prefixes stay as in the file.
    I8,
}

/// Converts a part; rows must fit into `chunk_bytes`, but that is checked by whoever packs.
pub(crate) fn convert(
    update: &mut Update,
    dtype: AdapterDtype,
    chunk_bytes: usize,
) -> Result<(), Refusal> {
    // Only what is multiplied has row scales.
    let has_scales = matches!(update, Update::LowRank(_) | Update::Bottleneck(_));
    let (tensors, place) = match update {
        Update::LowRank(LowRankUpdate { a, b, site, .. })
        | Update::Bottleneck(Bottleneck { a, b, site, .. }) => (vec![a, b], place(*site)),
        Update::Embedding(EmbeddingUpdate { a, b, .. }) => (vec![a, b], "the embedding".to_owned()),
        Update::TokenRows(rows) => (vec![&mut rows.rows], "the embedding".to_owned()),
        Update::KvPrefix(prefix) => (vec![&mut prefix.rows], "the prefix".to_owned()),
        Update::Vectors(_) | Update::VirtualTokens(_) | Update::InvocationTokens(_) => {
            return Ok(());
        }
    };
    for tensor in tensors {
        let target = match dtype {
            AdapterDtype::Auto if !has_large_f32_row(tensor, chunk_bytes) => continue,
            AdapterDtype::I8 if !has_scales => continue,
            AdapterDtype::Auto | AdapterDtype::F16 => Dtype::F16,
            AdapterDtype::Bf16 => Dtype::Bf16,
            AdapterDtype::I8 => Dtype::I8,
        };
        match target {
            Dtype::I8 => quantize(tensor),
            _ => round(tensor, target).map_err(|value| too_large(value, &place, target))?,
        }
    }
    Ok(())
}

fn has_large_f32_row(tensor: &AdapterTensor, chunk_bytes: usize) -> bool {
    tensor.dtype == Dtype::F32 && tensor.cols * 4 > chunk_bytes
}

fn place(site: Site) -> String {
    match site {
        Site::Layer { layer, module } => format!("{} of layer {layer}", Module::hf_name(module)),
        Site::LmHead => "lm_head".to_owned(),
    }
}

fn too_large(value: f32, place: &str, dtype: Dtype) -> Refusal {
    let (name, largest) = match dtype {
        Dtype::F16 => ("float16", f16::MAX.to_f32()),
        _ => ("bfloat16", bf16::MAX.to_f32()),
    };
    Refusal::new(format!(
        "holds the value {value:e} for {place}, but the largest {name} is {largest:e}; use another \
         --adapter-dtype"
    ))
}

/// Elements that are converted in one go.
const BLOCK: usize = 4096;

/// Rounds to the nearest value of a 16-bit `dtype`; the error is a value beyond its range.
fn round(tensor: &mut AdapterTensor, dtype: Dtype) -> Result<(), f32> {
    if tensor.dtype == dtype {
        return Ok(());
    }
    let num_elements = tensor.rows * tensor.cols;
    let mut data = Vec::with_capacity(num_elements * 2);
    let (mut values, mut f16s, mut bf16s) = (Vec::new(), Vec::new(), Vec::new());
    for block in tensor.data.chunks(BLOCK * tensor.dtype.size()) {
        decode(block, tensor.dtype, &mut values);
        let overflow = if dtype == Dtype::F16 {
            f16s.resize(values.len(), f16::ZERO);
            f16s.convert_from_f32_slice(&values);
            data.extend(f16s.iter().flat_map(|value| value.to_le_bytes()));
            f16s.iter().position(|value| !value.is_finite())
        } else {
            bf16s.resize(values.len(), bf16::ZERO);
            bf16s.convert_from_f32_slice(&values);
            data.extend(bf16s.iter().flat_map(|value| value.to_le_bytes()));
            bf16s.iter().position(|value| !value.is_finite())
        };
        if let Some(index) = overflow {
            return Err(values[index]);
        }
    }
    tensor.dtype = dtype;
    tensor.data = data.into();
    Ok(())
}

/// Symmetric, a scale for each row.
fn quantize(tensor: &mut AdapterTensor) {
    let row_bytes = tensor.cols * tensor.dtype.size();
    let mut data = Vec::with_capacity(tensor.rows * tensor.cols);
    let mut scales = Vec::with_capacity(tensor.rows);
    let mut values = Vec::new();
    for row in tensor.data.chunks_exact(row_bytes.max(1)) {
        decode(row, tensor.dtype, &mut values);
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let scale = largest / 127.0;
        // A row of zeros, or of what is as good as that.
        let divisor = if scale > 0.0 { scale } else { 1.0 };
        // Casts saturate: a subnormal scale may be too small by rounding.
        data.extend(values.iter().map(|value| {
            let code = (value / divisor).round_ties_even().clamp(-127.0, 127.0) as i8;
            code.cast_unsigned()
        }));
        scales.push(scale);
    }
    if let Some(given) = &tensor.row_scales {
        scales.iter_mut().zip(given).for_each(|(scale, given)| *scale *= given);
    }
    tensor.dtype = Dtype::I8;
    tensor.data = data.into();
    tensor.row_scales = Some(scales.into());
}

/// The values of `bytes`, which are of a float type.
pub(crate) fn decode(bytes: &[u8], dtype: Dtype, values: &mut Vec<f32>) {
    values.clear();
    match dtype {
        Dtype::F32 => {
            values.extend(bytes.as_chunks::<4>().0.iter().map(|&bits| f32::from_le_bytes(bits)));
        }
        Dtype::F16 => {
            let halves = bytes.as_chunks::<2>().0;
            let halves: Vec<_> = halves.iter().map(|&bits| f16::from_le_bytes(bits)).collect();
            values.resize(halves.len(), 0.0);
            halves.convert_to_f32_slice(values);
        }
        Dtype::Bf16 => {
            let halves = bytes.as_chunks::<2>().0;
            values.extend(halves.iter().map(|&bits| bf16::from_le_bytes(bits).to_f32()));
        }
        // Files have none.
        Dtype::I8 => values.extend(bytes.iter().map(|&byte| f32::from(byte.cast_signed()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_types::{ContentHash, LoweredAdapter};

    fn tensor(rows: usize, cols: usize, values: &[f32]) -> AdapterTensor {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        AdapterTensor { dtype: Dtype::F32, rows, cols, data, row_scales: None }
    }

    fn adapter(values: &[f32]) -> LoweredAdapter {
        let a = tensor(1, values.len(), values);
        let b = tensor(1, 2, &[1.0, 2.0]);
        let site = Site::Layer { layer: 3, module: Module::Up };
        let embedding = EmbeddingUpdate { scale: 1.0, a: b.clone(), b: a.clone() };
        LoweredAdapter {
            content_hash: ContentHash([0; 32]),
            low_rank: vec![LowRankUpdate { site, scale: 1.0, a, b }],
            embedding: Some(embedding),
            ..LoweredAdapter::default()
        }
    }

    fn convert(
        mut adapter: LoweredAdapter,
        dtype: AdapterDtype,
        chunk_bytes: usize,
    ) -> Result<LoweredAdapter, Refusal> {
        let convert = |mut update| {
            super::convert(&mut update, dtype, chunk_bytes)?;
            Ok(update)
        };
        for update in std::mem::take(&mut adapter.low_rank) {
            if let Update::LowRank(update) = convert(Update::LowRank(update))? {
                adapter.low_rank.push(update);
            }
        }
        if let Some(update) = adapter.embedding.take()
            && let Update::Embedding(update) = convert(Update::Embedding(update))?
        {
            adapter.embedding = Some(update);
        }
        Ok(adapter)
    }

    fn decoded(tensor: &AdapterTensor) -> Vec<f32> {
        let mut values = Vec::new();
        decode(&tensor.data, tensor.dtype, &mut values);
        values
    }

    #[test]
    fn halves_are_the_nearest_and_what_they_cannot_hold_is_refused_by_name() {
        let values = [1.0, -0.333_333, 65504.0, 1e-7];
        let rounded = convert(adapter(&values), AdapterDtype::F16, 1 << 20).unwrap();
        let expected = values.map(|value| f16::from_f32(value).to_f32());
        assert_eq!(decoded(&rounded.low_rank[0].a), expected);
        assert_eq!(rounded.embedding.unwrap().b.dtype, Dtype::F16);
        let large = adapter(&[1.0, -70000.0]);
        let words = convert(large.clone(), AdapterDtype::F16, 1 << 20).unwrap_err().to_string();
        assert_eq!(
            words,
            "holds the value -7e4 for up_proj of layer 3, but the largest float16 is 6.5504e4; use \
             another --adapter-dtype"
        );
        let rounded = convert(large, AdapterDtype::Bf16, 1 << 20).unwrap();
        assert_eq!(decoded(&rounded.low_rank[0].a)[1], bf16::from_f32(-70000.0).to_f32());
        assert!(convert(adapter(&[f32::MAX]), AdapterDtype::Bf16, 1 << 20).is_err());
    }

    #[test]
    fn auto_changes_nothing_unless_a_row_is_too_large() {
        let given = adapter(&[0.1; 16]);
        assert_eq!(convert(given.clone(), AdapterDtype::Auto, 64).unwrap(), given);
        let rounded = convert(given, AdapterDtype::Auto, 63).unwrap();
        assert_eq!(rounded.low_rank[0].a.dtype, Dtype::F16);
        assert_eq!(rounded.low_rank[0].a.data.len(), 32);
    }

    #[test]
    fn integers_are_within_half_a_scale_and_zeros_stay_zeros() {
        let values: Vec<f32> = (0..300).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
        let mut rows = tensor(3, 100, &values);
        rows.data[400..800].fill(0);
        let exact = decoded(&rows);
        quantize(&mut rows);
        let scales = rows.row_scales.clone().unwrap();
        assert_eq!((rows.dtype, rows.data.len(), scales.len()), (Dtype::I8, 300, 3));
        assert_eq!(scales[1], 0.0);
        for (i, (code, exact)) in decoded(&rows).iter().zip(exact).enumerate() {
            let scale = scales[i / 100];
            assert!((code * scale - exact).abs() <= scale * 0.501, "{i}");
        }
        let integers = convert(adapter(&values), AdapterDtype::I8, 1 << 20).unwrap();
        assert_eq!(integers.low_rank[0].b.dtype, Dtype::I8);
        assert_eq!(integers.embedding.unwrap().a.dtype, Dtype::F32);
    }

    #[test]
    fn scales_that_rows_have_already_are_kept() {
        let values = [1.0, -0.5, 3.0, 0.25];
        let (mut plain, mut scaled) = (tensor(2, 2, &values), tensor(2, 2, &values));
        scaled.row_scales = Some([2.0, -4.0].into());
        quantize(&mut plain);
        quantize(&mut scaled);
        assert_eq!(plain.data, scaled.data);
        let of = |tensor: &AdapterTensor| tensor.row_scales.clone().unwrap();
        assert_eq!(*of(&scaled), [of(&plain)[0] * 2.0, of(&plain)[1] * -4.0]);
    }

    #[test]
    fn the_smallest_floats_are_quantized_without_infinities() {
        for value in [f32::MIN_POSITIVE, 1e-40, 1e-45] {
            let mut row = tensor(1, 2, &[value, -value]);
            quantize(&mut row);
            let scale = row.row_scales.clone().unwrap()[0];
            let error = decoded(&row)[0] * scale - value;
            assert!(error.abs() <= value, "{value:e} {error:e}");
        }
    }
}
