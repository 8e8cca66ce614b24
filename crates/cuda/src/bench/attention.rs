//! The rotary embedding with the store into the cache, and attention over that. A set is a layer: all
//! lie in the same blocks, as in a model.

use super::Work;
use super::inputs::{
    Deviation, Rng, Sets, from_half_bytes, from_halves, precision, sample, to_half,
};
use super::session::{Case, Session};
use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu, HalfType};
use crate::ops::attention::{
    self, DecodeOperands, MAX_ITEM_ROWS, PrefillItem, PrefillOperands, QueryHeads,
};
use crate::ops::kv_cache::{
    self, ActivationRows, BLOCK_TOKENS, KvType, PagedKv, RopeStoreOperands,
};
use weft_types::BaseModelSpec;

/// Rows and heads that are compared.
const CHECKED_ROWS: usize = 3;
const CHECKED_HEADS: usize = 3;
/// Random numbers that fill the cache again and again: no divisor of anything.
const PATTERN: usize = 1_000_003;

/// A cache of random numbers, and which blocks sequences have.
struct Cache {
    kv: PagedKv,
    arena: Buffer<u8>,
    tables: Buffer<u32>,
    /// `[sequences, blocks of each]`
    blocks: Vec<u32>,
    blocks_of_each: usize,
}

/// Bytes of keys and values of a layer.
fn layer_bytes(spec: &BaseModelSpec, num_positions: usize) -> usize {
    num_positions * 2 * spec.num_kv_heads * spec.head_dim * size_of::<u16>()
}

impl Cache {
    /// The cache holds f16, whatever activations are.
    fn new(
        gpu: &Gpu,
        spec: &BaseModelSpec,
        [num_seqs, context, num_layers]: [usize; 3],
    ) -> Result<Self, DriverError> {
        let mut kv = PagedKv {
            arena: DevicePtr::NULL,
            chunk_bytes: 0,
            layer: 0,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            kv_type: KvType::F16,
        };
        kv.chunk_bytes = kv.block_bytes(num_layers);
        let blocks_of_each = context.div_ceil(BLOCK_TOKENS);
        let num_blocks = num_seqs * blocks_of_each;
        let mut arena = gpu.alloc::<u8>(num_blocks * kv.chunk_bytes)?;
        let mut rng = Rng::new(8);
        let pattern = rng.halves(HalfType::F16, PATTERN.min(arena.len() / 2));
        let pattern: &[u8] = bytemuck::cast_slice(&pattern);
        for start in (0..arena.len()).step_by(pattern.len()) {
            let len = pattern.len().min(arena.len() - start);
            arena.write(start, &pattern[..len])?;
        }
        kv.arena = arena.ptr();
        let blocks = rng.permutation(num_blocks);
        let tables = gpu.upload(&blocks)?;
        Ok(Self { kv, arena, tables, blocks, blocks_of_each })
    }

    fn layer(&self, layer: usize) -> PagedKv {
        PagedKv { layer, ..self.kv }
    }

    /// Where in the tables a sequence's blocks begin.
    fn first_block(&self, seq: usize) -> u32 {
        (seq * self.blocks_of_each) as u32
    }

    /// Keys (0) or values (1) of a head in layer 0, `[num_positions, head_dim]`.
    fn read(
        &self,
        seq: usize,
        head: usize,
        [is_values, num_positions]: [usize; 2],
    ) -> Result<Vec<f64>, DriverError> {
        let (mut numbers, len) = (Vec::new(), BLOCK_TOKENS * self.kv.head_dim);
        let first = self.first_block(seq) as usize;
        for &block in &self.blocks[first..][..num_positions.div_ceil(BLOCK_TOKENS)] {
            let at = (self.kv.page_start(head) + is_values * len) * size_of::<u16>();
            let start = block as usize * self.kv.chunk_bytes + at;
            let bytes = self.arena.read(start..start + len * size_of::<u16>())?;
            numbers.extend(from_half_bytes(HalfType::F16, &bytes));
        }
        numbers.truncate(num_positions * self.kv.head_dim);
        Ok(numbers)
    }

    /// Rows `(row, sequence, positions that it sees)`, in some heads, against the reference.
    fn error(
        &self,
        (half, heads): (HalfType, &QueryHeads),
        (q, out): (&[u16], &[u16]),
        rows: &[(usize, usize, usize)],
    ) -> Result<f64, DriverError> {
        let width = self.kv.head_dim;
        let (q, out) = (from_halves(half, q), from_halves(half, out));
        let mut largest = 0f64;
        for &(row, seq, context) in rows {
            for head in sample(heads.num_heads, CHECKED_HEADS) {
                let kv_head = head / (heads.num_heads / self.kv.num_kv_heads);
                let keys = self.read(seq, kv_head, [0, context])?;
                let values = self.read(seq, kv_head, [1, context])?;
                let here = (row * heads.num_heads + head) * width..;
                let want = attention::reference(&q[here.clone()][..width], &keys, &values, heads);
                // Of each row and head: sums of long contexts are smaller than those of short ones.
                largest = largest.max(Deviation::of(&out[here][..width], &want));
            }
        }
        Ok(largest)
    }
}

fn query_heads(spec: &BaseModelSpec) -> QueryHeads {
    let scale = (spec.head_dim as f32).sqrt().recip();
    QueryHeads { num_heads: spec.num_heads, scale, window: None }
}

/// Large enough that weights differ much.
fn queries(half: HalfType, len: usize) -> Vec<u16> {
    let mut rng = Rng::new(9);
    (0..len).map(|_| to_half(half, 4.0 * rng.float())).collect()
}

/// Queries and weights are rounded to what tensor cores multiply, outputs to activations.
fn tolerance(half: HalfType) -> f64 {
    2.0 * precision(half) + 2.0 * precision(HalfType::F16)
}

/// Sequences with a row each.
pub(super) fn decode(session: &mut Session<'_>) -> Result<(), DriverError> {
    let (gpu, half, spec) = (session.gpu.clone(), session.half, session.spec.clone());
    let (heads, stride) = (query_heads(&spec), spec.num_heads * spec.head_dim);
    for context in session.contexts() {
        for num_seqs in session.decode_rows() {
            let (op, shape) = ("attention, decode", format!("{num_seqs} x {context} positions"));
            if !session.wants(op, &shape) {
                continue;
            }
            let kv_bytes = layer_bytes(&spec, num_seqs * context);
            let num_sets = session.num_sets(kv_bytes);
            let cache = Cache::new(&gpu, &spec, [num_seqs, context, num_sets])?;
            let q = queries(half, num_seqs * stride);
            let (device_q, out) = (gpu.upload(&q)?, gpu.alloc::<u16>(q.len())?);
            let table = |value: &dyn Fn(usize) -> u32| {
                gpu.upload(&(0..num_seqs).map(value).collect::<Vec<u32>>())
            };
            let (rows, contexts) = (table(&|seq| seq as u32)?, table(&|_| context as u32)?);
            let first_blocks = table(&|seq| cache.first_block(seq))?;
            let num_splits = attention::decode_splits(&gpu, &cache.kv, &heads, num_seqs);
            let sizes = [num_seqs, num_splits];
            let len = attention::decode_scratch_len(sizes, heads.num_heads, spec.head_dim);
            let scratch = gpu.alloc::<f32>(len.max(1))?;
            let operands = DecodeOperands {
                q: ActivationRows { ptr: device_q.ptr(), stride },
                out: ActivationRows { ptr: out.ptr(), stride },
                rows: rows.ptr(),
                contexts: contexts.ptr(),
                first_blocks: first_blocks.ptr(),
                block_tables: cache.tables.ptr(),
                scratch: scratch.ptr(),
            };
            let work = Work {
                bytes: (kv_bytes + 2 * q.len() * size_of::<u16>()) as f64,
                flops: 4.0 * (q.len() * context) as f64,
            };
            let case = Case { op: op.into(), shape, tolerance: tolerance(half), work, num_sets };
            let launch = |set| {
                let kv = cache.layer(set);
                // SAFETY: the buffers are as long as the tables say.
                unsafe { attention::decode(&gpu, half, &kv, &heads, &operands, sizes) }
            };
            let error = || {
                let rows: Vec<_> = sample(num_seqs, CHECKED_ROWS)
                    .into_iter()
                    .map(|row| (row, row, context))
                    .collect();
                let got = out.read(0..out.len())?;
                cache.error((half, &heads), (&q, &got), &rows)
            };
            session.measure(case, launch, error)?;
        }
    }
    Ok(())
}

/// A chunk of one prompt: from its beginning, and at the end of a long context.
pub(super) fn prefill(session: &mut Session<'_>) -> Result<(), DriverError> {
    let (gpu, half, spec) = (session.gpu.clone(), session.half, session.spec.clone());
    let (heads, stride) = (query_heads(&spec), spec.num_heads * spec.head_dim);
    let num_rows = session.prefill_rows();
    for context in [num_rows, session.contexts()[1]] {
        let (op, shape) = ("attention, prefill", format!("{num_rows} rows, {context} positions"));
        if !session.wants(op, &shape) {
            continue;
        }
        let kv_bytes = layer_bytes(&spec, context);
        let num_sets = session.num_sets(kv_bytes);
        let cache = Cache::new(&gpu, &spec, [1, context, num_sets])?;
        let q = queries(half, num_rows * stride);
        let (device_q, out) = (gpu.upload(&q)?, gpu.alloc::<u16>(q.len())?);
        let start = context - num_rows;
        let item = |first_row: usize| PrefillItem {
            first_row: first_row as u32,
            num_rows: MAX_ITEM_ROWS.min(num_rows - first_row) as u32,
            position: (start + first_row) as u32,
            first_block: 0,
        };
        let items: Vec<_> = (0..num_rows).step_by(MAX_ITEM_ROWS).map(item).collect();
        let device_items = gpu.upload(&items)?;
        let operands = PrefillOperands {
            q: ActivationRows { ptr: device_q.ptr(), stride },
            out: ActivationRows { ptr: out.ptr(), stride },
            items: device_items.ptr(),
            block_tables: cache.tables.ptr(),
        };
        let num_pairs: usize = (0..num_rows).map(|row| start + row + 1).sum();
        let work = Work {
            bytes: (kv_bytes + 2 * q.len() * size_of::<u16>()) as f64,
            flops: 4.0 * (stride * num_pairs) as f64,
        };
        let case = Case { op: op.into(), shape, tolerance: tolerance(half), work, num_sets };
        let launch = |set| {
            let kv = cache.layer(set);
            // SAFETY: the buffers are as long as the items say.
            unsafe { attention::prefill(&gpu, half, &kv, &heads, &operands, items.len()) }
        };
        let error = || {
            let rows: Vec<_> = sample(num_rows, CHECKED_ROWS)
                .into_iter()
                .map(|row| (row, 0, start + row + 1))
                .collect();
            let got = out.read(0..out.len())?;
            cache.error((half, &heads), (&q, &got), &rows)
        };
        session.measure(case, launch, error)?;
    }
    Ok(())
}

/// Angles of any size: the kernel only multiplies.
fn rotations(num_positions: usize, half_width: usize) -> Vec<[f32; 2]> {
    let angle = |i: usize| (i / half_width) as f64 * 0.7f64.powi((i % half_width) as i32);
    (0..num_positions * half_width)
        .map(|i| [angle(i).cos() as f32, angle(i).sin() as f32])
        .collect()
}

/// Rows at positions 0, 1, … of one sequence.
pub(super) fn rope_store(session: &mut Session<'_>) -> Result<(), DriverError> {
    let (gpu, half, spec) = (session.gpu.clone(), session.half, session.spec.clone());
    let (width, num_heads, num_kv_heads) = (spec.head_dim, spec.num_heads, spec.num_kv_heads);
    for num_rows in session.all_rows() {
        let (op, shape) =
            ("RoPE, store", format!("[{num_rows}, {num_heads}+{num_kv_heads}, {width}]"));
        if !session.wants(op, &shape) {
            continue;
        }
        // q is read and written, k also stored, v read and stored.
        let num_bytes = num_rows * width * (2 * num_heads + 5 * num_kv_heads) * size_of::<u16>();
        let num_sets = session.num_sets(num_bytes);
        let cache = Cache::new(&gpu, &spec, [1, num_rows, num_sets])?;
        let mut rng = Rng::new(11);
        let q = rng.halves(half, num_rows * num_heads * width);
        let k = rng.halves(half, num_rows * num_kv_heads * width);
        let v = rng.halves(half, k.len());
        let [device_q, device_k, device_v] = [
            Sets::new(&gpu, num_sets, &q)?,
            Sets::new(&gpu, num_sets, &k)?,
            Sets::new(&gpu, num_sets, &v)?,
        ];
        let table = rotations(num_rows, width / 2);
        let device_table = gpu.upload(table.as_flattened())?;
        let upload = |value: &dyn Fn(usize) -> u32| {
            gpu.upload(&(0..num_rows).map(value).collect::<Vec<u32>>())
        };
        let positions = upload(&|row| row as u32)?;
        let blocks = upload(&|row| cache.blocks[row / BLOCK_TOKENS])?;
        let offsets = upload(&|row| (row % BLOCK_TOKENS) as u32)?;
        let sizes = [num_rows, num_heads, width];
        let launch = |set| {
            let rows = |ptr, num_heads: usize| ActivationRows { ptr, stride: num_heads * width };
            let operands = RopeStoreOperands {
                q: rows(device_q.ptr(set), num_heads),
                k: rows(device_k.ptr(set), num_kv_heads),
                v: rows(device_v.ptr(set), num_kv_heads),
                rotations: device_table.ptr(),
                positions: positions.ptr(),
                blocks: blocks.ptr(),
                offsets: offsets.ptr(),
            };
            // SAFETY: the buffers are as long as the shapes say; each row has its place.
            unsafe { kv_cache::rope_store(&gpu, half, &cache.layer(set), &operands, sizes) }
        };
        let rotated = |bits: &[u16], num_heads: usize, row: usize, head: usize| {
            let head = &bits[(row * num_heads + head) * width..][..width];
            let rotation = &table[row * (width / 2)..][..width / 2];
            kv_cache::rotate_reference(&from_halves(half, head), rotation)
        };
        let error = || {
            let mut deviation = Deviation::default();
            let got = from_halves(half, &device_q.read()?);
            for row in sample(num_rows, CHECKED_ROWS) {
                for head in sample(num_heads, CHECKED_HEADS) {
                    let at = (row * num_heads + head) * width;
                    deviation.add(&got[at..][..width], &rotated(&q, num_heads, row, head));
                }
                for head in sample(num_kv_heads, CHECKED_HEADS) {
                    let stored = |is_values| cache.read(0, head, [is_values, num_rows]);
                    let keys = stored(0)?;
                    let want = rotated(&k, num_kv_heads, row, head);
                    deviation.add(&keys[row * width..][..width], &want);
                    let at = (row * num_kv_heads + head) * width;
                    let want = from_halves(half, &v[at..][..width]);
                    deviation.add(&stored(1)?[row * width..][..width], &want);
                }
            }
            Ok(deviation.value())
        };
        let tolerance = precision(half) + 2.0 * precision(HalfType::F16);
        let work = Work::bytes(num_bytes);
        session.measure(Case { op: op.into(), shape, tolerance, work, num_sets }, launch, error)?;
    }
    Ok(())
}
