//! A paged KV cache with known contents: sequences in blocks out of order, all else NaN.

use crate::support::{Rng, from_half, to_half};
use weft_cuda::ops::kv_cache::{BLOCK_TOKENS, KvType, PagedKv};
use weft_cuda::{Buffer, Gpu, HalfType};

pub(crate) const KV_TYPES: [KvType; 3] = [KvType::F16, KvType::Bf16, KvType::E4m3];
const NUM_LAYERS: usize = 2;

/// The number that bits stand for.
pub(crate) fn from_kv(kv_type: KvType, bits: u16) -> f64 {
    match kv_type {
        KvType::F16 => from_half(HalfType::F16, bits),
        KvType::Bf16 => from_half(HalfType::Bf16, bits),
        KvType::E4m3 => {
            let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
            let magnitude = match (exponent, bits & 7) {
                (15, 7) => f64::NAN,
                (0, _) => mantissa * 2f64.powi(-9),
                _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
            };
            if bits & 0x80 == 0 { magnitude } else { -magnitude }
        }
    }
}

/// The bits nearest to a number, the even ones of two.
pub(crate) fn to_kv(kv_type: KvType, value: f32) -> u16 {
    match kv_type {
        KvType::F16 => to_half(HalfType::F16, value),
        KvType::Bf16 => to_half(HalfType::Bf16, value),
        KvType::E4m3 => {
            let distance = |bits: u16| (from_kv(kv_type, bits) - f64::from(value.abs())).abs();
            let nearest = (0..0x7f)
                .min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))))
                .expect("there are numbers");
            nearest | u16::from(value.is_sign_negative()) << 7
        }
    }
}

/// See the module. Keys and values of sequence i, head g: `[context, head_dim]`.
pub(crate) struct Cache {
    pub(crate) kv: PagedKv,
    pub(crate) arena: Buffer<u8>,
    pub(crate) tables: Buffer<u32>,
    pub(crate) first_blocks: Vec<u32>,
    pub(crate) keys: Vec<Vec<Vec<f64>>>,
    pub(crate) values: Vec<Vec<Vec<f64>>>,
}

impl Cache {
    pub(crate) fn new(
        gpu: &Gpu,
        rng: &mut Rng,
        kv_type: KvType,
        [num_kv_heads, head_dim]: [usize; 2],
        contexts: &[usize],
    ) -> Self {
        let mut kv = PagedKv {
            arena: weft_cuda::DevicePtr::NULL,
            chunk_bytes: 0,
            layer: 1,
            num_kv_heads,
            head_dim,
            kv_type,
        };
        kv.chunk_bytes = kv.block_bytes(NUM_LAYERS) + 48;
        let num_blocks: usize = contexts.iter().map(|len| len.div_ceil(BLOCK_TOKENS)).sum();
        let mut blocks: Vec<u32> = (0..num_blocks as u32).collect();
        for i in (1..num_blocks).rev() {
            blocks.swap(i, rng.below(i + 1));
        }
        let mut bytes = vec![0xff; num_blocks.max(1) * kv.chunk_bytes];
        // Entries before and behind are not to be read.
        let mut tables = vec![u32::MAX; 3];
        let (mut first_blocks, mut keys, mut values) = (vec![], vec![], vec![]);
        let mut rest = blocks.into_iter();
        for &context in contexts {
            first_blocks.push(tables.len() as u32);
            let own: Vec<u32> = rest.by_ref().take(context.div_ceil(BLOCK_TOKENS)).collect();
            let mut fill = |is_values: usize| {
                let mut of_head = |head: usize| {
                    let mut numbers = Vec::with_capacity(context * head_dim);
                    for position in 0..context {
                        let row = is_values * BLOCK_TOKENS + position % BLOCK_TOKENS;
                        let start = kv.page_start(head) + row * head_dim;
                        let block = own[position / BLOCK_TOKENS] as usize * kv.chunk_bytes;
                        for column in 0..head_dim {
                            let bits = to_kv_quickly(kv_type, 2.0 * rng.float());
                            let at = block + (start + column) * kv_type.num_bytes();
                            bytes[at..at + kv_type.num_bytes()]
                                .copy_from_slice(&bits.to_le_bytes()[..kv_type.num_bytes()]);
                            numbers.push(from_kv(kv_type, bits));
                        }
                    }
                    numbers
                };
                (0..num_kv_heads).map(&mut of_head).collect::<Vec<_>>()
            };
            keys.push(fill(0));
            values.push(fill(1));
            tables.extend(own);
        }
        let arena = gpu.upload(&bytes).unwrap();
        kv.arena = arena.ptr();
        let tables = gpu.upload(&tables).unwrap();
        Self { kv, arena, tables, first_blocks, keys, values }
    }

    /// What the cache holds of a block: 0 for keys, 1 for values.
    pub(crate) fn stored(
        &self,
        block: usize,
        head: usize,
        [is_values, offset]: [usize; 2],
    ) -> Vec<u16> {
        let (size, width) = (self.kv.kv_type.num_bytes(), self.kv.head_dim);
        let at = self.kv.page_start(head) + (is_values * BLOCK_TOKENS + offset) * width;
        let start = block * self.kv.chunk_bytes + at * size;
        let bytes = self.arena.read(start..start + width * size).unwrap();
        let bits = |number: &[u8]| number.iter().rev().fold(0, |bits, &b| bits << 8 | u16::from(b));
        bytes.chunks_exact(size).map(bits).collect()
    }
}

/// Not to the nearest: any number will do.
fn to_kv_quickly(kv_type: KvType, value: f32) -> u16 {
    match kv_type {
        KvType::E4m3 => {
            let step = (value * 64.0) as i32;
            (step.unsigned_abs() as u16 % 0x48) | u16::from(step < 0) << 7
        }
        _ => to_kv(kv_type, value),
    }
}
