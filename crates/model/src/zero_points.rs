//! Linears of GPTQ and AWQ: `scale * (code - zero)`, codes and zeros packed in 32-bit words.
//!
//! In: `NAME.qweight`, `NAME.qzeros`, `NAME.scales` and, of GPTQ, `NAME.g_idx`. Out: the same codes,
//! scales and zeros, packed row by row. With act-order a group's inputs lie anywhere: they are stored
//! group by group, with the input that each is.

use crate::error::ModelError;
use crate::tensor_files::TensorFiles;
use weft_kernels::PackedLinear;
use weft_kernels::coded::CodedRow;
use weft_kernels::pack::Packer;
use weft_kernels::weight::Format;
use weft_types::LinearShape;

/// Where AWQ's gemm puts the eight outputs of a word, lowest bits first.
const AWQ_OUTPUTS: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// What `config.json` says of GPTQ.
#[derive(Clone, Copy)]
pub(crate) struct Gptq {
    /// Of a code: 4 or 8.
    pub(crate) bits: usize,
    /// Inputs that share a scale; all of them if `None`.
    pub(crate) group: Option<usize>,
    /// Whether `g_idx` says which group an input is in.
    pub(crate) act_order: bool,
    /// Whether zeros are stored less one.
    pub(crate) less_one: bool,
}

/// The linear of this name if GPTQ quantized it; `None` if it has no codes.
pub(crate) fn read_gptq(
    files: &TensorFiles,
    name: &str,
    shape: LinearShape,
    gptq: Gptq,
) -> Result<Option<PackedLinear>, ModelError> {
    let Gptq { bits, group, act_order, less_one } = gptq;
    let LinearShape { num_inputs, num_outputs } = shape;
    let Some(codes) = files.find(&format!("{name}.qweight")) else { return Ok(None) };
    let per_word = 32 / bits;
    whole_words(name, per_word, num_inputs, num_outputs)?;
    let group = group.unwrap_or(num_inputs);
    let num_groups = num_inputs.div_ceil(group);
    let codes = codes.of_shape(&[num_inputs / per_word, num_outputs])?.words()?;
    let zeros = files.get(&format!("{name}.qzeros"))?;
    let zeros = zeros.of_shape(&[num_groups, num_outputs / per_word])?.words()?;
    // Tools subtract one from whole words, so that a zero of 0 borrows from the next: a sum with the
    // word's carries gives all of them back.
    let ones = if !less_one {
        0
    } else if bits == 4 {
        0x1111_1111
    } else {
        0x0101_0101
    };
    let mask = (1 << bits) - 1;
    let code_at = |input: usize, output: usize| {
        let word = u32::from_le_bytes(codes[input / per_word * num_outputs + output]);
        (word >> (input % per_word * bits) & mask) as u8
    };
    let zero_at = |group: usize, output: usize| {
        let word = zeros[(group * num_outputs + output) / per_word];
        let word = u32::from_le_bytes(word).wrapping_add(ones);
        (word >> (output % per_word * bits) & mask) as u8
    };
    let in_order = |input: usize| input / group;
    let g_idx = files.find(&format!("{name}.g_idx"));
    let groups: Vec<usize> = match g_idx {
        Some(g_idx) => {
            let words = g_idx.of_shape(&[num_inputs])?.words()?;
            words.iter().map(|&word| u32::from_le_bytes(word) as usize).collect()
        }
        None if act_order => {
            return Err(ModelError::Invalid(format!(
                "the checkpoint has no tensor {name}.g_idx, which desc_act asks for"
            )));
        }
        None => (0..num_inputs).map(in_order).collect(),
    };
    if groups.iter().any(|&group| group >= num_groups) {
        return Err(ModelError::Invalid(format!(
            "tensor {name}.g_idx names a group that is not among {num_groups}"
        )));
    }
    if !act_order && groups.iter().enumerate().any(|(input, &group)| group != in_order(input)) {
        return Err(ModelError::Invalid(format!(
            "tensor {name}.g_idx is not in order, though config.json says desc_act false"
        )));
    }
    let grouping = Grouping::new(name, &groups)?;
    grouping.pack(files, name, shape, bits, (num_groups, code_at, zero_at)).map(Some)
}

/// The linear of this name if AWQ quantized it; `None` if it has no codes.
pub(crate) fn read_awq(
    files: &TensorFiles,
    name: &str,
    shape: LinearShape,
    group: Option<usize>,
) -> Result<Option<PackedLinear>, ModelError> {
    let LinearShape { num_inputs, num_outputs } = shape;
    let Some(codes) = files.find(&format!("{name}.qweight")) else { return Ok(None) };
    whole_words(name, 8, num_inputs, num_outputs)?;
    let group = group.unwrap_or(num_inputs);
    let num_groups = num_inputs.div_ceil(group);
    let num_words = num_outputs / 8;
    let codes = codes.of_shape(&[num_inputs, num_words])?.words()?;
    let zeros = files.get(&format!("{name}.qzeros"))?;
    let zeros = zeros.of_shape(&[num_groups, num_words])?.words()?;
    let mut shifts = [0; 8];
    for (nibble, output) in AWQ_OUTPUTS.into_iter().enumerate() {
        shifts[output] = 4 * nibble;
    }
    let at = |words: &[[u8; 4]], row: usize, output: usize| {
        let word = u32::from_le_bytes(words[row * num_words + output / 8]);
        (word >> shifts[output % 8] & 15) as u8
    };
    let code_at = |input: usize, output: usize| at(codes, input, output);
    let zero_at = |group: usize, output: usize| at(zeros, group, output);
    let groups: Vec<usize> = (0..num_inputs).map(|input| input / group).collect();
    let grouping = Grouping::new(name, &groups)?;
    grouping.pack(files, name, shape, 4, (num_groups, code_at, zero_at)).map(Some)
}

fn whole_words(
    name: &str,
    per_word: usize,
    num_inputs: usize,
    num_outputs: usize,
) -> Result<(), ModelError> {
    if num_inputs.is_multiple_of(per_word) && num_outputs.is_multiple_of(per_word) {
        return Ok(());
    }
    Err(ModelError::Unsupported(format!(
        "{name} has {num_inputs} inputs and {num_outputs} outputs, not both multiples of {per_word}: \
         its codes do not fill words"
    )))
}

/// Inputs, group by group.
#[derive(Debug)]
struct Grouping {
    /// The input at each place; in order where that keeps groups together.
    order: Vec<usize>,
    /// Inputs of a group as it is packed: what all runs of one group are multiples of.
    group: usize,
    /// The file's group of each packed one.
    sources: Vec<usize>,
}

impl Grouping {
    /// From the group that each input is in.
    fn new(name: &str, groups: &[usize]) -> Result<Self, ModelError> {
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by_key(|&input| groups[input]);
        let runs = order.chunk_by(|&a, &b| groups[a] == groups[b]).map(<[usize]>::len);
        let group = runs.fold(0, greatest_common_divisor);
        if !group.is_multiple_of(8) || group == 0 {
            return Err(ModelError::Unsupported(format!(
                "{name} has groups of {group} inputs; multiples of 8 are read"
            )));
        }
        let sources = order.iter().step_by(group).map(|&input| groups[input]).collect();
        Ok(Self { order, group, sources })
    }

    fn pack(
        &self,
        files: &TensorFiles,
        name: &str,
        LinearShape { num_inputs, num_outputs }: LinearShape,
        bits: usize,
        (num_groups, code_at, zero_at): (
            usize,
            impl Fn(usize, usize) -> u8,
            impl Fn(usize, usize) -> u8,
        ),
    ) -> Result<PackedLinear, ModelError> {
        let scales = files.get(&format!("{name}.scales"))?;
        let scales = scales.of_shape(&[num_groups, num_outputs])?.floats()?;
        let format = Format::ZeroPoint { bits, group: self.group };
        let mut packer = if self.order.is_sorted() {
            Packer::new(format, num_outputs, num_inputs)
        } else {
            let order = self.order.iter().map(|&input| input as u32).collect();
            Packer::with_order(format, num_outputs, num_inputs, order)
        };
        for row in 0..num_outputs {
            let codes: Vec<u8> = self.order.iter().map(|&input| code_at(input, row)).collect();
            let of_groups = self.sources.iter();
            let zeros: Vec<u8> = of_groups.clone().map(|&group| zero_at(group, row)).collect();
            let scales: Vec<f32> =
                of_groups.map(|&group| scales[group * num_outputs + row]).collect();
            packer.set_coded(row, CodedRow { codes: &codes, scales: &scales, zeros: &zeros });
        }
        Ok(packer.finish())
    }
}

pub(crate) fn greatest_common_divisor(mut a: usize, mut b: usize) -> usize {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_of_a_group_are_brought_together_and_keep_their_order() {
        let groups: Vec<usize> = (0..32).map(|input| (input + 1) % 2).collect();
        let grouping = Grouping::new("x", &groups).unwrap();
        assert_eq!(grouping.group, 16);
        assert_eq!(grouping.sources, [0, 1]);
        assert_eq!(grouping.order[..3], [1, 3, 5]);
        assert_eq!(grouping.order[16..19], [0, 2, 4]);
    }

    #[test]
    fn a_short_last_group_makes_all_groups_shorter() {
        let groups: Vec<usize> = (0..80).map(|input| input / 32).collect();
        let grouping = Grouping::new("x", &groups).unwrap();
        assert_eq!((grouping.group, grouping.sources.len()), (16, 5));
        assert_eq!(grouping.sources, [0, 0, 1, 1, 2]);
        assert!(grouping.order.is_sorted());
        let groups: Vec<usize> = (0..36).map(|input| input / 32).collect();
        let error = Grouping::new("x", &groups).unwrap_err().to_string();
        assert!(error.contains("groups of 4"), "{error}");
    }
}
