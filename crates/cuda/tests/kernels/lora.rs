//! Low-rank updates against f64: distributions of rows over adapters, exact ranks, types, widths.

use crate::support::{HALVES, Rng, assert_close, from_half, gpu, precision, to_half, to_halves};
use half::{bf16, f16};
use weft_cuda::adapter_table;
use weft_cuda::ops::lora::{self, LoraInput, LoraTarget, OutType, Pieces};
use weft_cuda::work_list::{LoraPiece, WorkList};
use weft_cuda::{Buffer, DevicePtr, Gpu, HalfType};
use weft_types::{
    AdapterTensor, ContentHash, Dtype, EmbeddingUpdate, LowRankUpdate, LoweredAdapter, Module,
    PackedAdapter, Site,
};

pub(crate) const DTYPES: [Dtype; 4] = [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::I8];
pub(crate) const NUM_LAYERS: usize = 2;
const LAYER: u32 = 1;

/// An adapter on the device, and in f64 what it is made of.
pub(crate) struct Adapter {
    pub(crate) lowered: LoweredAdapter,
    pub(crate) table: Buffer<u8>,
    _pages: Vec<Buffer<u8>>,
}

pub(crate) fn tensor(rng: &mut Rng, dtype: Dtype, [rows, cols]: [usize; 2]) -> AdapterTensor {
    let values = rng.floats(rows * cols);
    let data: Vec<u8> = match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::I8 => values.iter().map(|v| (v * 127.0).round() as i8 as u8).collect(),
    };
    // Small scales: products of two leave the range of half precision.
    let row_scales =
        (dtype == Dtype::I8).then(|| (0..rows).map(|_| (1.5 + rng.float()) / 4000.0).collect());
    AdapterTensor { dtype, rows, cols, data: data.into(), row_scales }
}

/// Without the scales of rows.
pub(crate) fn values(tensor: &AdapterTensor) -> Vec<f64> {
    let halves = |half| {
        let bits = tensor.data.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        bits.map(|bits| from_half(half, bits)).collect()
    };
    match tensor.dtype {
        Dtype::F32 => {
            let words = tensor.data.chunks_exact(4);
            words.map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
        }
        Dtype::F16 => halves(HalfType::F16),
        Dtype::Bf16 => halves(HalfType::Bf16),
        Dtype::I8 => tensor.data.iter().map(|&b| f64::from(b as i8)).collect(),
    }
}

/// `update.scale` times the scales of rows.
fn scales(update: &LowRankUpdate) -> Vec<f32> {
    let of = |tensor: &AdapterTensor, j: usize| tensor.row_scales.as_ref().map_or(1.0, |s| s[j]);
    (0..update.rank()).map(|j| update.scale * of(&update.a, j) * of(&update.b, j)).collect()
}

/// A module, K and N, and the ranks and types of A and B.
type SiteSpec = (Site, [usize; 2], usize, [Dtype; 2]);

pub(crate) fn site(module: Module) -> Site {
    Site::Layer { layer: LAYER, module }
}

impl Adapter {
    fn new(gpu: &Gpu, rng: &mut Rng, chunk_bytes: usize, sites: &[SiteSpec]) -> Self {
        let update = |&(site, [num_inputs, num_outputs], rank, [a, b]): &SiteSpec| LowRankUpdate {
            site,
            scale: 0.5,
            a: tensor(rng, a, [rank, num_inputs]),
            b: tensor(rng, b, [rank, num_outputs]),
        };
        let low_rank = sites.iter().map(update).collect();
        let content_hash = ContentHash([0; 32]);
        let lowered = LoweredAdapter { content_hash, low_rank, ..LoweredAdapter::default() };
        Self::load(gpu, chunk_bytes, lowered)
    }

    pub(crate) fn load(gpu: &Gpu, chunk_bytes: usize, lowered: LoweredAdapter) -> Self {
        let packed = PackedAdapter::pack(&lowered, chunk_bytes).expect("rows fit");
        let pages: Vec<_> =
            packed.pages.iter().map(|page| gpu.upload(page).expect("the device works")).collect();
        let len = adapter_table::table_bytes(&packed.layout, NUM_LAYERS);
        let mut table = gpu.alloc::<u8>(len).expect("the device works");
        let address = |page: usize| pages[page].ptr();
        let bytes = adapter_table::build(&packed.layout, NUM_LAYERS, address, table.ptr());
        table.write(0, &bytes).expect("the device works");
        Self { lowered, table, _pages: pages }
    }
}

/// Runs of rows with an adapter, or the base.
pub(crate) type Segments = Vec<(usize, Option<usize>)>;

pub(crate) fn work(adapters: &[Adapter], segments: &Segments) -> WorkList {
    let mut list = WorkList::default();
    let mut row = 0;
    list.build(segments.iter().map(|&(len, adapter)| {
        row += len;
        let table = adapter.map_or(DevicePtr::NULL, |index| adapters[index].table.ptr());
        (row - len..row, table)
    }));
    list
}

/// The adapter of each row.
pub(crate) fn owners(segments: &Segments) -> Vec<Option<usize>> {
    segments.iter().flat_map(|&(len, adapter)| vec![adapter; len]).collect()
}

/// Linears that share an input.
struct Case<'a> {
    half: HalfType,
    out: OutType,
    num_inputs: usize,
    targets: &'a [(Module, usize)],
    max_rank: usize,
}

/// Outputs before and after, as bits: of `half` or f32.
type Outputs = Vec<(Vec<u32>, Vec<u32>)>;

/// Runs both kinds of kernels over x and outputs that depend on the row's seed only.
fn run(
    gpu: &Gpu,
    case: &Case<'_>,
    adapters: &[Adapter],
    segments: &Segments,
) -> (Vec<u16>, Outputs) {
    let num_rows: usize = segments.iter().map(|segment| segment.0).sum();
    let mut rng = Rng::new(77);
    let x = to_halves(case.half, &rng.floats(num_rows * case.num_inputs));
    let device_x = gpu.upload(&x).expect("the device works");
    let mut list = work(adapters, segments);
    list.pad_decode(list.decode().len() + 1);
    let before: Vec<Vec<f32>> =
        case.targets.iter().map(|&(_, n)| rng.floats(num_rows * n)).collect();
    let is_half = case.out == OutType::Half;
    let bits =
        |value: f32| if is_half { u32::from(to_half(case.half, value)) } else { value.to_bits() };
    let before: Vec<Vec<u32>> =
        before.iter().map(|values| values.iter().map(|&v| bits(v)).collect()).collect();
    let narrow = |values: &[u32]| values.iter().map(|&bits| bits as u16).collect::<Vec<_>>();
    let halves: Vec<Buffer<u16>> = before
        .iter()
        .map(|values| gpu.upload(&narrow(values)).expect("the device works"))
        .collect();
    let floats: Vec<Buffer<u32>> =
        before.iter().map(|values| gpu.upload(values).expect("the device works")).collect();
    let out = |p: usize| if is_half { halves[p].ptr() } else { floats[p].ptr() };
    let targets: Vec<LoraTarget> = case
        .targets
        .iter()
        .enumerate()
        .map(|(p, &(module, num_outputs))| LoraTarget {
            site: adapter_table::site_index(site(module), NUM_LAYERS),
            num_outputs,
            out: out(p),
        })
        .collect();
    let h = gpu
        .alloc::<f32>(lora::scratch_len(num_rows, case.max_rank, case.num_inputs))
        .expect("the device works");
    let launch = |pieces: &[LoraPiece], is_decode: bool| {
        let device_pieces = gpu.upload(pieces).expect("the device works");
        let input = LoraInput {
            pieces: device_pieces.ptr(),
            num_pieces: pieces.len(),
            x: device_x.ptr(),
            num_inputs: case.num_inputs,
            num_rows,
            max_rank: case.max_rank,
            h: h.ptr(),
        };
        let types = (case.half, case.out);
        // SAFETY: the buffers are as long as the shapes say.
        unsafe {
            if is_decode {
                lora::bgmv(gpu, types, &input, &targets).expect("the device works");
            } else {
                lora::sgmv(gpu, types, &input, &targets).expect("the device works");
            }
        }
    };
    launch(list.decode(), true);
    launch(list.prefill(), false);
    let after = |p: usize| -> Vec<u32> {
        if is_half {
            let bits = halves[p].read(0..halves[p].len()).expect("the device works");
            bits.into_iter().map(u32::from).collect()
        } else {
            floats[p].read(0..floats[p].len()).expect("the device works")
        }
    };
    let outputs = before.into_iter().enumerate().map(|(p, before)| (before, after(p))).collect();
    (x, outputs)
}

fn number(case: &Case<'_>, bits: u32) -> f64 {
    match case.out {
        OutType::Half => from_half(case.half, bits as u16),
        OutType::F32 => f64::from(f32::from_bits(bits)),
    }
}

/// Every row that has an adapter is near its reference, every other has the bits it had.
#[track_caller]
fn check(gpu: &Gpu, case: &Case<'_>, adapters: &[Adapter], segments: &Segments, what: &str) {
    let (x, outputs) = run(gpu, case, adapters, segments);
    for (&(module, num_outputs), (before, after)) in case.targets.iter().zip(&outputs) {
        for (t, owner) in owners(segments).into_iter().enumerate() {
            let rows = t * num_outputs..(t + 1) * num_outputs;
            let update = owner.and_then(|index| adapters[index].lowered.at(site(module)));
            let Some(update) = update else {
                assert_eq!(before[rows.clone()], after[rows], "{what}: row {t} of {module:?}");
                continue;
            };
            let x = &x[t * case.num_inputs..][..case.num_inputs];
            let x: Vec<f64> = x.iter().map(|&bits| from_half(case.half, bits)).collect();
            let scales = scales(update);
            let mut want = lora::reference(&x, &values(&update.a), &values(&update.b), &scales);
            let olds = before[rows.clone()].iter().map(|&bits| number(case, bits));
            want.iter_mut().zip(olds).for_each(|(want, old)| *want += old);
            let got: Vec<f64> = after[rows].iter().map(|&bits| number(case, bits)).collect();
            let what = format!("{what}: row {t} of {module:?}");
            assert_close(&got, &want, 3.0 * precision(case.half), &what);
        }
    }
}

/// Rows over adapters, as Punica's workloads have them, with rows of the base among them.
fn distributions(num_adapters: usize) -> Vec<(&'static str, Segments)> {
    let base = |len| (len, None);
    let zipf = (0..num_adapters).map(|i| (12usize.div_ceil(i + 1), Some(i)));
    vec![
        ("identical", vec![base(1), (11, Some(2))]),
        ("distinct", (0..num_adapters).map(|i| (1, Some(i))).chain([base(2)]).collect()),
        ("uniform", (0..num_adapters).map(|i| (2, Some(i))).collect()),
        ("zipf", zipf.chain([base(3)]).collect()),
        ("skewed", vec![(15, Some(1)), base(1), (1, Some(3)), (1, Some(0))]),
    ]
}

const QKV: [(Module, usize); 3] = [(Module::Q, 72), (Module::K, 24), (Module::V, 24)];
const QKV_INPUTS: usize = 136;

/// Adapters of ranks 1, 3, 8, 16, 5 and types of all kinds; one has only k, one not v.
fn qkv_adapters(gpu: &Gpu, rng: &mut Rng) -> Vec<Adapter> {
    let mut new = |index: usize, rank: usize, modules: &[usize]| {
        let (a, b) = (DTYPES[index % 4], DTYPES[(index + index / 4) % 4]);
        let spec = |&p: &usize| (site(QKV[p].0), [QKV_INPUTS, QKV[p].1], rank + p, [a, b]);
        // Chunks of a few rows: matrices lie in several runs.
        let chunk_bytes = if index.is_multiple_of(2) { 1200 } else { 1 << 16 };
        Adapter::new(gpu, rng, chunk_bytes, &modules.iter().map(spec).collect::<Vec<_>>())
    };
    vec![
        new(0, 8, &[0, 1, 2]),
        new(1, 3, &[1]),
        new(2, 16, &[0, 1, 2]),
        new(3, 1, &[0, 1, 2]),
        new(4, 5, &[0, 1]),
    ]
}

#[test]
fn decode_adds_each_rows_own_update_whatever_the_distribution() {
    let (gpu, mut rng) = (gpu(), Rng::new(3));
    let adapters = qkv_adapters(&gpu, &mut rng);
    for (index, (name, segments)) in distributions(adapters.len()).into_iter().enumerate() {
        let half = HALVES[index % 2];
        let (targets, num_inputs) = (&QKV[..], QKV_INPUTS);
        let case = Case { half, out: OutType::Half, num_inputs, targets, max_rank: 18 };
        check(&gpu, &case, &adapters, &segments, name);
    }
}

#[test]
fn prefill_adds_each_rows_own_update() {
    let (gpu, mut rng) = (gpu(), Rng::new(4));
    let adapters = qkv_adapters(&gpu, &mut rng);
    let segments: Segments =
        vec![(2, None), (70, Some(2)), (17, Some(0)), (3, Some(1)), (20, Some(3)), (1, None)];
    for half in HALVES {
        let (targets, num_inputs) = (&QKV[..], QKV_INPUTS);
        let case = Case { half, out: OutType::Half, num_inputs, targets, max_rank: 18 };
        check(&gpu, &case, &adapters, &segments, &format!("{half:?}"));
    }
}

#[test]
fn every_rank_and_type_of_matrix_in_decode_and_in_prefill() {
    let (gpu, mut rng) = (gpu(), Rng::new(5));
    for (index, rank) in [1, 3, 64, 256].into_iter().enumerate() {
        for b in 0..2 {
            let dtypes = [DTYPES[index], DTYPES[(index + 1 + b) % 4]];
            let spec = (site(Module::Down), [72, 40], rank, dtypes);
            let adapters = [Adapter::new(&gpu, &mut rng, 1 << 12, &[spec])];
            let (half, out) = (HALVES[(index + b) % 2], OutType::F32);
            let targets = &[(Module::Down, 40)];
            let case = Case { half, out, num_inputs: 72, targets, max_rank: rank };
            for segments in [vec![(3, Some(0)), (1, None)], vec![(1, None), (18, Some(0))]] {
                check(&gpu, &case, &adapters, &segments, &format!("{half:?} {rank} {dtypes:?}"));
            }
        }
    }
}

#[test]
fn widths_that_are_no_multiples_of_eight() {
    let (gpu, mut rng) = (gpu(), Rng::new(6));
    for (dtype, half) in [(Dtype::F16, HalfType::F16), (Dtype::I8, HalfType::Bf16)] {
        let spec = (site(Module::O), [77, 43], 7, [dtype; 2]);
        let adapters = [Adapter::new(&gpu, &mut rng, 400, &[spec])];
        let targets = &[(Module::O, 43)];
        for out in [OutType::Half, OutType::F32] {
            let case = Case { half, out, num_inputs: 77, targets, max_rank: 8 };
            let segments = vec![(1, None), (9, Some(0)), (1, None), (17, Some(0))];
            check(&gpu, &case, &adapters, &segments, &format!("{half:?} {dtype:?} {out:?}"));
        }
    }
}

#[test]
fn wide_inputs_are_split_and_wide_outputs_tiled() {
    let (gpu, mut rng) = (gpu(), Rng::new(7));
    let spec = (site(Module::Up), [2400, 1096], 4, [Dtype::Bf16; 2]);
    let adapters = [Adapter::new(&gpu, &mut rng, 1 << 20, &[spec])];
    let (half, out, targets) = (HalfType::Bf16, OutType::Half, &[(Module::Up, 1096)]);
    let case = Case { half, out, num_inputs: 2400, targets, max_rank: 4 };
    check(&gpu, &case, &adapters, &vec![(1, Some(0)), (1, None), (16, Some(0))], "wide");
}

#[test]
fn a_row_has_the_same_bits_whoever_shares_its_batch() {
    let (gpu, mut rng) = (gpu(), Rng::new(8));
    let adapters = qkv_adapters(&gpu, &mut rng);
    let (half, out) = (HalfType::F16, OutType::Half);
    let case = Case { half, out, num_inputs: QKV_INPUTS, targets: &QKV, max_rank: 18 };
    // Of 24 rows, the first and the last three belong to adapter 2 in all batches.
    let batches: [Segments; 3] = [
        vec![(1, Some(2)), (20, None), (3, Some(2))],
        vec![(3, Some(2)), (5, Some(0)), (9, Some(3)), (7, Some(2))],
        vec![(12, Some(2)), (12, Some(2))],
    ];
    let results = batches.each_ref().map(|segments| run(&gpu, &case, &adapters, segments).1);
    for (p, (_, num_outputs)) in QKV.into_iter().enumerate() {
        for t in [0, 21, 22, 23] {
            let row = |outputs: &Outputs| outputs[p].1[t * num_outputs..][..num_outputs].to_vec();
            assert_eq!(row(&results[0]), row(&results[1]), "row {t}");
            assert_eq!(row(&results[0]), row(&results[2]), "row {t}");
        }
    }
    // The same in prefill, of a piece's rows.
    let long = |first, second| vec![(16, Some(first)), (20, Some(2)), (16, Some(second))];
    let results = [long(0, 3), long(4, 1)].map(|segments| run(&gpu, &case, &adapters, &segments).1);
    for (p, (_, num_outputs)) in QKV.into_iter().enumerate() {
        let rows = |outputs: &Outputs| outputs[p].1[16 * num_outputs..36 * num_outputs].to_vec();
        assert_eq!(rows(&results[0]), rows(&results[1]));
    }
}

#[test]
fn the_embedding_gets_its_update() {
    const VOCAB: usize = 50;
    const HIDDEN: usize = 72;
    let (gpu, mut rng) = (gpu(), Rng::new(9));
    for (index, (rank, half)) in [(5, HalfType::F16), (17, HalfType::Bf16)].into_iter().enumerate()
    {
        let a = tensor(&mut rng, DTYPES[index], [VOCAB, rank]);
        let b = tensor(&mut rng, DTYPES[index + 1], [rank, HIDDEN]);
        let embedding = Some(EmbeddingUpdate { scale: 0.7, a, b });
        let (content_hash, low_rank) = (ContentHash([0; 32]), Vec::new());
        let adapter = Adapter::load(
            &gpu,
            400,
            LoweredAdapter { content_hash, low_rank, embedding, ..LoweredAdapter::default() },
        );
        let segments: Segments = vec![(1, None), (9, Some(0)), (1, None), (18, Some(0))];
        let list = work(std::slice::from_ref(&adapter), &segments);
        let owners = owners(&segments);
        let mut tokens: Vec<u32> = owners.iter().map(|_| rng.below(VOCAB) as u32).collect();
        // Virtual tokens have no update.
        (tokens[2], tokens[20]) = (VOCAB as u32, u32::MAX);
        let before = rng.floats(tokens.len() * HIDDEN);
        let out = gpu.upload(&before).unwrap();
        let device_tokens = gpu.upload(&tokens).unwrap();
        let h = gpu.alloc::<f32>(lora::scratch_len(tokens.len(), rank, 1)).unwrap();
        let site = adapter_table::embedding_index(NUM_LAYERS);
        let target = LoraTarget { site, num_outputs: HIDDEN, out: out.ptr() };
        for (kind, pieces) in [(Pieces::Decode, list.decode()), (Pieces::Prefill, list.prefill())] {
            let device_pieces = gpu.upload(pieces).unwrap();
            let input = LoraInput {
                pieces: device_pieces.ptr(),
                num_pieces: pieces.len(),
                x: device_tokens.ptr(),
                num_inputs: 1,
                num_rows: tokens.len(),
                max_rank: rank,
                h: h.ptr(),
            };
            // SAFETY: the buffers are as long as the shapes say.
            unsafe { lora::embedding(&gpu, (half, kind), &input, target) }.unwrap();
        }
        let update = adapter.lowered.embedding.as_ref().unwrap();
        let (a, b) = (values(&update.a), values(&update.b));
        let after = out.read(0..out.len()).unwrap();
        for (t, owner) in owners.iter().enumerate() {
            let (old, got) = (&before[t * HIDDEN..][..HIDDEN], &after[t * HIDDEN..][..HIDDEN]);
            if owner.is_none() || tokens[t] as usize >= VOCAB {
                assert_eq!(old, got);
                continue;
            }
            let row = &a[tokens[t] as usize * rank..][..rank];
            let mut want: Vec<f64> = old.iter().map(|&v| f64::from(v)).collect();
            for (j, factor) in row.iter().enumerate() {
                let b = &b[j * HIDDEN..][..HIDDEN];
                want.iter_mut().zip(b).for_each(|(want, b)| *want += 0.7 * factor * b);
            }
            let got: Vec<f64> = got.iter().map(|&v| f64::from(v)).collect();
            assert_close(&got, &want, 2.0 * precision(half), &format!("{half:?} row {t}"));
        }
    }
}
