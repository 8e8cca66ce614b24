//! Paged attention, decode and prefill, against its reference.

use crate::paged::{Cache, KV_TYPES, from_kv};
use crate::support::{HALVES, Rng, assert_close, from_half, gpu, precision, to_halves};
use weft_cuda::ops::attention::{
    self, DecodeOperands, HEAD_DIMS, MAX_ITEM_ROWS, PrefillItem, PrefillOperands, QueryHeads,
};
use weft_cuda::ops::kv_cache::{ActivationRows, BLOCK_TOKENS, KvType};
use weft_cuda::{Buffer, Gpu, HalfType};

/// What nobody wrote.
const UNTOUCHED: u16 = 0x7bcd;

#[derive(Clone, Copy, Debug)]
struct Case {
    half: HalfType,
    kv_type: KvType,
    num_kv_heads: usize,
    group: usize,
    head_dim: usize,
    window: Option<usize>,
}

const CASE: Case = Case {
    half: HalfType::F16,
    kv_type: KvType::F16,
    num_kv_heads: 2,
    group: 4,
    head_dim: 32,
    window: None,
};

impl Case {
    fn heads(&self) -> QueryHeads {
        let scale = (self.head_dim as f32).sqrt().recip();
        QueryHeads { num_heads: self.num_kv_heads * self.group, scale, window: self.window }
    }

    /// Queries and weights are rounded to what the tensor cores multiply, outputs to activations.
    fn tolerance(&self) -> f64 {
        let math = if self.kv_type == KvType::Bf16 { HalfType::Bf16 } else { HalfType::F16 };
        precision(self.half) + 2.0 * precision(math)
    }
}

/// A batch: a cache, and queries with a gap between rows.
struct Batch {
    case: Case,
    gpu: Gpu,
    cache: Cache,
    stride: usize,
    q: Buffer<u16>,
    queries: Vec<f64>,
    out: Buffer<u16>,
}

impl Batch {
    fn new(case: Case, contexts: &[usize], num_rows: usize) -> Self {
        let (gpu, mut rng) = (gpu(), Rng::new(case.head_dim as u64));
        let shape = [case.num_kv_heads, case.head_dim];
        let cache = Cache::new(&gpu, &mut rng, case.kv_type, shape, contexts);
        let stride = case.heads().num_heads * case.head_dim + 8;
        let numbers: Vec<f32> = rng.floats(num_rows * stride).iter().map(|x| 2.0 * x).collect();
        let bits = to_halves(case.half, &numbers);
        let queries = bits.iter().map(|&bits| from_half(case.half, bits)).collect();
        let out = gpu.upload(&vec![UNTOUCHED; bits.len()]).expect("the device works");
        Self {
            case,
            q: gpu.upload(&bits).expect("the device works"),
            gpu,
            cache,
            stride,
            queries,
            out,
        }
    }

    fn rows(&self, buffer: &Buffer<u16>) -> ActivationRows {
        ActivationRows { ptr: buffer.ptr(), stride: self.stride }
    }

    /// `(sequence, context, row)`, and the bits of all rows.
    fn decode(&mut self, entries: &[(usize, usize, usize)], num_splits: usize) -> Vec<u16> {
        let table = |value: &dyn Fn(&(usize, usize, usize)) -> usize| {
            let values: Vec<u32> = entries.iter().map(|entry| value(entry) as u32).collect();
            self.gpu.upload(&values).expect("the device works")
        };
        let (rows, contexts) = (table(&|entry| entry.2), table(&|entry| entry.1));
        let first_blocks = table(&|entry| self.cache.first_blocks[entry.0] as usize);
        let (heads, sizes) = (self.case.heads(), [entries.len(), num_splits]);
        let len = attention::decode_scratch_len(sizes, heads.num_heads, self.case.head_dim);
        let scratch = self.gpu.alloc::<f32>(len.max(1)).expect("the device works");
        self.out.write(0, &vec![UNTOUCHED; self.out.len()]).expect("the device works");
        let operands = DecodeOperands {
            q: self.rows(&self.q),
            out: self.rows(&self.out),
            rows: rows.ptr(),
            contexts: contexts.ptr(),
            first_blocks: first_blocks.ptr(),
            block_tables: self.cache.tables.ptr(),
            scratch: scratch.ptr(),
        };
        let (kv, half) = (&self.cache.kv, self.case.half);
        // SAFETY: the buffers are as long as the tables say.
        unsafe { attention::decode(&self.gpu, half, kv, &heads, &operands, sizes) }
            .expect("the device works");
        self.out.read(0..self.out.len()).expect("the device works")
    }

    fn prefill(&mut self, items: &[PrefillItem]) -> Vec<u16> {
        let ditems = self.gpu.upload(items).expect("the device works");
        self.out.write(0, &vec![UNTOUCHED; self.out.len()]).expect("the device works");
        let operands = PrefillOperands {
            q: self.rows(&self.q),
            out: self.rows(&self.out),
            items: ditems.ptr(),
            block_tables: self.cache.tables.ptr(),
        };
        let (kv, heads, half) = (&self.cache.kv, self.case.heads(), self.case.half);
        // SAFETY: the buffers are as long as the items say.
        unsafe { attention::prefill(&self.gpu, half, kv, &heads, &operands, items.len()) }
            .expect("the device works");
        self.out.read(0..self.out.len()).expect("the device works")
    }

    /// A row that sees `context` positions of a sequence, against the reference.
    #[track_caller]
    fn check_row(&self, out: &[u16], (sequence, context, row): (usize, usize, usize)) {
        let (width, heads) = (self.case.head_dim, self.case.heads());
        for head in 0..heads.num_heads {
            let start = row * self.stride + head * width;
            let kv_head = head / self.case.group;
            let keys = &self.cache.keys[sequence][kv_head][..context * width];
            let values = &self.cache.values[sequence][kv_head][..context * width];
            let want =
                attention::reference(&self.queries[start..start + width], keys, values, &heads);
            let got: Vec<f64> = out[start..start + width]
                .iter()
                .map(|&bits| from_half(self.case.half, bits))
                .collect();
            let what = format!("{:?}, {context} positions, row {row}, head {head}", self.case);
            assert_close(&got, &want, self.case.tolerance(), &what);
        }
    }

    fn row<'a>(&self, out: &'a [u16], row: usize) -> &'a [u16] {
        &out[row * self.stride..(row + 1) * self.stride]
    }
}

/// All lengths that matter, rows out of order, padding between.
fn check_decode(case: Case, num_splits: usize) {
    let contexts = [1, 15, 16, 17, 100, 300];
    let mut batch = Batch::new(case, &contexts, contexts.len() + 1);
    let mut entries: Vec<_> =
        contexts.iter().enumerate().map(|(i, &context)| (i, context, (5 * i + 1) % 7)).collect();
    entries.insert(2, (0, 0, 0));
    let out = batch.decode(&entries, num_splits);
    for entry in entries.into_iter().filter(|entry| entry.1 != 0) {
        batch.check_row(&out, entry);
    }
    let free = (0..7).find(|row| (0..6).all(|i| (5 * i + 1) % 7 != *row)).expect("a row is free");
    assert!(batch.row(&out, free).iter().all(|&bits| bits == UNTOUCHED), "{case:?}");
}

#[test]
fn decode_matches_its_reference_at_every_width_of_heads() {
    for head_dim in HEAD_DIMS {
        check_decode(Case { head_dim, num_kv_heads: 1, ..CASE }, 2);
    }
}

#[test]
fn decode_matches_its_reference_in_all_types() {
    for half in HALVES {
        for kv_type in KV_TYPES {
            check_decode(Case { half, kv_type, head_dim: 64, ..CASE }, 3);
        }
    }
    for head_dim in [16, 80, 256] {
        check_decode(Case { kv_type: KvType::E4m3, head_dim, num_kv_heads: 1, ..CASE }, 1);
    }
}

#[test]
fn heads_share_keys_and_values_in_groups_of_any_size() {
    for group in [1, 3, 8, 12] {
        for num_splits in [1, 4] {
            check_decode(Case { group, ..CASE }, num_splits);
        }
    }
}

#[test]
fn rows_that_decode_see_no_further_back_than_their_window() {
    for window in [1, 16, 33, 200, 4096] {
        check_decode(Case { window: Some(window), ..CASE }, 2);
    }
}

#[test]
fn a_sequence_decodes_to_the_same_bits_alone_and_among_others() {
    let mut batch = Batch::new(CASE, &[300, 40, 7], 3);
    let all = batch.decode(&[(1, 40, 0), (0, 300, 1), (2, 7, 2)], 3);
    let alone = batch.decode(&[(0, 300, 1)], 3);
    assert_eq!(batch.row(&all, 1), batch.row(&alone, 1));
}

#[test]
fn all_eight_bit_numbers_are_read_exactly() {
    let case = Case { kv_type: KvType::E4m3, head_dim: 256, num_kv_heads: 1, group: 1, ..CASE };
    let mut batch = Batch::new(case, &[1], 1);
    // The two that are no numbers, aside.
    let codes: Vec<u8> =
        (0..=255).map(|code: u8| if code & 0x7f == 0x7f { 0 } else { code }).collect();
    let values = batch.cache.kv.page_start(0) + BLOCK_TOKENS * case.head_dim;
    batch.cache.arena.write(values, &codes).unwrap();
    // The only position that the row sees: its weight is one.
    let out = batch.decode(&[(0, 1, 0)], 1);
    for (&code, &bits) in codes.iter().zip(&out) {
        assert_eq!(from_half(case.half, bits), from_kv(case.kv_type, u16::from(code)), "{code:#x}");
    }
}

#[test]
fn few_sequences_get_more_splits_than_many() {
    let batch = Batch::new(CASE, &[1], 1);
    let splits =
        |num_seqs| attention::decode_splits(&batch.gpu, &batch.cache.kv, &CASE.heads(), num_seqs);
    assert_eq!([splits(1), splits(3), splits(6), splits(1000)], [6, 2, 1, 1]);
}

/// Items of up to `lengths[i]` rows, again and again, for rows from `position` on; padding between.
fn items(
    first_row: usize,
    position: usize,
    rows: usize,
    first_block: u32,
    lengths: &[usize],
) -> Vec<PrefillItem> {
    let (mut items, mut done) = (Vec::new(), 0);
    for &length in lengths.iter().cycle() {
        if done == rows {
            return items;
        }
        let num_rows = length.min(rows - done);
        items.push(PrefillItem {
            first_row: (first_row + done) as u32,
            num_rows: num_rows as u32,
            position: (position + done) as u32,
            first_block,
        });
        items.push(PrefillItem { first_row: u32::MAX, ..PrefillItem::default() });
        done += num_rows;
    }
    items
}

/// Two sequences: a prompt from its beginning, and the end of one whose beginning is in the cache.
fn check_prefill(case: Case, [whole, cached, rest]: [usize; 3]) {
    let mut batch = Batch::new(case, &[whole, cached + rest], whole + rest + 1);
    let first = batch.cache.first_blocks.clone();
    let all_items = |lengths: &[usize]| {
        let mut all = items(0, 0, whole, first[0], lengths);
        all.extend(items(whole, cached, rest, first[1], lengths));
        all
    };
    let out = batch.prefill(&all_items(&[MAX_ITEM_ROWS]));
    for row in 0..whole {
        batch.check_row(&out, (0, row + 1, row));
    }
    for row in 0..rest {
        batch.check_row(&out, (1, cached + row + 1, whole + row));
    }
    assert!(batch.row(&out, whole + rest).iter().all(|&bits| bits == UNTOUCHED), "{case:?}");
    let chunked = batch.prefill(&all_items(&[17, 1, 40]));
    assert!(out == chunked, "{case:?}: another result in other chunks");
}

#[test]
fn prefill_matches_its_reference_at_every_width_of_heads() {
    for head_dim in HEAD_DIMS {
        check_prefill(Case { head_dim, num_kv_heads: 1, group: 2, ..CASE }, [20, 70, 5]);
    }
}

#[test]
fn prefill_matches_its_reference_in_all_types() {
    for half in HALVES {
        for kv_type in KV_TYPES {
            check_prefill(Case { half, kv_type, num_kv_heads: 1, ..CASE }, [66, 50, 33]);
        }
    }
    for head_dim in [16, 80, 256] {
        let case = Case { kv_type: KvType::E4m3, head_dim, num_kv_heads: 1, group: 1, ..CASE };
        check_prefill(case, [17, 63, 2]);
    }
}

#[test]
fn prefill_of_groups_of_any_size() {
    for group in [1, 3, 8] {
        check_prefill(Case { group, ..CASE }, [15, 130, 17]);
    }
}

#[test]
fn prompts_see_no_further_back_than_their_window() {
    for window in [1, 16, 50, 64, 4096] {
        let case = Case { window: Some(window), num_kv_heads: 1, group: 2, ..CASE };
        check_prefill(case, [100, 140, 33]);
    }
}

#[test]
fn heads_without_a_kernel_are_refused_with_a_sentence() {
    let case = Case { head_dim: 48, ..CASE };
    let batch = Batch::new(case, &[1], 1);
    let nothing = PrefillOperands {
        q: batch.rows(&batch.q),
        out: batch.rows(&batch.out),
        items: batch.q.ptr(),
        block_tables: batch.q.ptr(),
    };
    let (kv, heads) = (&batch.cache.kv, case.heads());
    // SAFETY: there are no items.
    let refused = unsafe { attention::prefill(&batch.gpu, case.half, kv, &heads, &nothing, 0) };
    assert!(refused.unwrap_err().0.contains("heads of 48 values"));
}
