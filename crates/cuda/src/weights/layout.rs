//! From rows of codes and scales to the bytes that the kernels read: the table in
//! `kernels/matmul/weights.cuh`. Knows no file and no device.

use super::WeightFormat;

/// Outputs of a tile.
pub(crate) const TILE: usize = 16;
/// Inputs of a step.
pub(crate) const STEP: usize = 64;

impl WeightFormat {
    /// Inputs that share a scale.
    pub(crate) fn group(self) -> usize {
        match self {
            Self::Dense => 1,
            Self::W4 | Self::ZeroPoint { .. } => 32,
            Self::W8 { group, .. } => group,
            Self::Codebook(_) => 64,
        }
    }

    /// Bytes of codes of a step of a tile.
    pub(crate) fn step_code_bytes(self) -> usize {
        TILE * STEP
            * match self {
                Self::Dense => 4,
                Self::W8 { .. } => 2,
                Self::ZeroPoint { bits } => bits / 4,
                Self::W4 | Self::Codebook(_) => 1,
            }
            / 2
    }

    /// Bytes of scales, and mins among them, of a step of a row.
    pub(crate) fn step_scale_bytes(self) -> usize {
        match self {
            Self::Dense => 0,
            Self::W4 | Self::ZeroPoint { .. } => 8,
            Self::W8 { group, has_min, .. } => STEP / group * if has_min { 4 } else { 2 },
            Self::Codebook(_) => 4,
        }
    }
}

/// A row before it is packed, both padded to whole steps with zeros.
#[derive(Debug)]
pub(crate) struct Row {
    /// For each input a code, or the bits of a 16-bit float.
    pub(crate) codes: Vec<u16>,
    /// Scales, each followed by its min or zero if the format has them, as they lie on the device.
    pub(crate) scales: Vec<u8>,
}

/// What the device gets.
#[derive(Debug)]
pub(crate) struct DeviceBytes {
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<u8>,
}

/// Packs `[num_outputs, num_inputs]`; `fill_row` writes a row into zeros. On all processors.
pub(crate) fn pack(
    format: WeightFormat,
    [num_outputs, num_inputs]: [usize; 2],
    fill_row: impl Fn(usize, &mut Row) + Sync,
) -> DeviceBytes {
    let (num_tiles, num_steps) = (num_outputs.div_ceil(TILE), num_inputs.div_ceil(STEP));
    let code_bytes = num_steps * format.step_code_bytes();
    let scale_bytes = num_steps * TILE * format.step_scale_bytes();
    let mut bytes = DeviceBytes {
        codes: vec![0; num_tiles * code_bytes],
        scales: vec![0; num_tiles * scale_bytes],
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let tiles = num_tiles.div_ceil(num_threads).max(1);
    let codes = bytes.codes.chunks_mut((tiles * code_bytes).max(1));
    // Dense weights have none: then there is nothing to cut, and each part gets an empty end.
    let mut scales = bytes.scales.chunks_mut((tiles * scale_bytes).max(1));
    std::thread::scope(|scope| {
        for (part, codes) in codes.enumerate() {
            let (scales, fill_row) = (scales.next().unwrap_or_default(), &fill_row);
            scope.spawn(move || {
                let mut row = Row { codes: Vec::new(), scales: Vec::new() };
                for (tile, codes) in codes.chunks_exact_mut(code_bytes).enumerate() {
                    let scales = &mut scales[tile * scale_bytes..][..scale_bytes];
                    let first = (part * tiles + tile) * TILE;
                    for (index, output) in (first..num_outputs.min(first + TILE)).enumerate() {
                        row.codes.clear();
                        row.codes.resize(num_steps * STEP, 0);
                        row.scales.clear();
                        row.scales.resize(num_steps * format.step_scale_bytes(), 0);
                        fill_row(output, &mut row);
                        put_codes(format, codes, index, &row.codes);
                        put_scales(format, scales, index, &row.scales);
                    }
                }
            });
        }
    });
    bytes
}

/// Four neighbouring inputs of a row belong to one lane and one of a step's four matrices.
fn put_codes(format: WeightFormat, tile: &mut [u8], row: usize, codes: &[u16]) {
    let (g, high) = (row % 8, row / 8);
    for (quad, codes) in codes.chunks_exact(4).enumerate() {
        let (step, input) = (quad / 16, quad % 16 * 4);
        let (matrix, lane) = (input / 32 * 2 + input % 8 / 4, g * 4 + input % 32 / 8);
        for (i, &code) in codes.iter().enumerate() {
            let pair = high + i / 2 * 2;
            let mut put_nibble = |nibble: usize| {
                let at = ((step * 32 + lane) * 4 + matrix) * 4 + nibble / 2;
                tile[at] |= (code as u8 & 15) << (nibble % 2 * 4);
            };
            match format {
                WeightFormat::Dense => {
                    let at = ((step * 4 + matrix) * 32 + lane) * 8 + pair * 2 + i % 2;
                    tile[2 * at..2 * at + 2].copy_from_slice(&code.to_le_bytes());
                }
                WeightFormat::W8 { .. } | WeightFormat::ZeroPoint { bits: 8 } => {
                    let at = ((step * 2 + matrix / 2) * 32 + lane) * 16;
                    tile[at + matrix % 2 * 8 + high * 4 + i] = code as u8;
                }
                WeightFormat::W4 | WeightFormat::ZeroPoint { .. } => put_nibble(pair + i % 2 * 4),
                WeightFormat::Codebook(_) => put_nibble(pair * 2 + i % 2),
            }
        }
    }
}

/// Rows g and g + 8 lie side by side.
fn put_scales(format: WeightFormat, tile: &mut [u8], row: usize, scales: &[u8]) {
    let num_bytes = format.step_scale_bytes();
    if num_bytes == 0 {
        return;
    }
    for (step, scales) in scales.chunks_exact(num_bytes).enumerate() {
        let at = (step * TILE + row % 8 * 2 + row / 8) * num_bytes;
        tile[at..at + num_bytes].copy_from_slice(scales);
    }
}
