//! What adapters do beside low-rank updates, against f64: gains, shifts, bottlenecks.

use crate::lora::{Adapter, DTYPES, NUM_LAYERS, Segments, owners, site, tensor, values, work};
use crate::support::{HALVES, Rng, assert_close, from_half, gpu, precision, to_f64, to_halves};
use weft_cuda::HalfType;
use weft_cuda::adapter_table::{Gain, SiteParts, site_parts};
use weft_cuda::adapter_table::{bottleneck_index, site_index};
use weft_cuda::ops::bottleneck::{Reference, bottleneck};
use weft_cuda::ops::gains::{Aside, apply_gains, reference};
use weft_cuda::ops::lora::{LoraInput, LoraTarget, Pieces, scratch_len};
use weft_types::{
    Activation, AdapterTensor, Bottleneck, BottleneckInput, LoweredAdapter, Module, PackedAdapter,
    SiteVectors,
};

/// With gains and shifts at Q, a gain only at K, a shift only at V.
fn with_vectors(rng: &mut Rng, width: usize) -> LoweredAdapter {
    let mut vector = || Some(rng.floats(width).into_boxed_slice());
    let vectors = vec![
        SiteVectors { site: site(Module::Q), input: vector(), output: vector(), shift: vector() },
        SiteVectors { site: site(Module::K), input: None, output: vector(), shift: None },
        SiteVectors { site: site(Module::V), input: None, output: None, shift: vector() },
    ];
    LoweredAdapter { vectors, ..LoweredAdapter::default() }
}

#[test]
fn gains_and_shifts_are_for_the_rows_of_their_adapter_and_site() {
    let (gpu, mut rng) = (gpu(), Rng::new(10));
    for (width, half) in [(72, HalfType::F16), (43, HalfType::Bf16)] {
        let adapters = [
            Adapter::load(&gpu, 1 << 12, LoweredAdapter::default()),
            Adapter::load(&gpu, 1 << 12, with_vectors(&mut rng, width)),
        ];
        let segments: Segments = vec![(2, Some(0)), (3, Some(1)), (1, None), (20, Some(1))];
        let (list, owners) = (work(&adapters, &segments), owners(&segments));
        for (index, vectors) in adapters[1].lowered.vectors.iter().enumerate() {
            for gain in [Gain::In, Gain::Out] {
                let x = rng.floats(owners.len() * width);
                let bits = to_halves(half, &x);
                let (floats, halves) = (gpu.upload(&x).unwrap(), gpu.upload(&bits).unwrap());
                for pieces in [list.decode(), list.prefill()] {
                    let device_pieces = gpu.upload(pieces).unwrap();
                    let pieces = (device_pieces.ptr(), pieces.len());
                    let site = (site_index(vectors.site, NUM_LAYERS), gain);
                    // SAFETY: the buffers are as long as the shapes say.
                    unsafe {
                        apply_gains(&gpu, None, pieces, site, (floats.ptr(), width)).unwrap();
                        let x = (halves.ptr(), width);
                        apply_gains(&gpu, Some(half), pieces, site, x).unwrap();
                    }
                }
                let got = floats.read(0..x.len()).unwrap();
                let got_bits = halves.read(0..x.len()).unwrap();
                for (t, owner) in owners.iter().enumerate() {
                    let row = t * width..(t + 1) * width;
                    let changes = gain == Gain::Out || vectors.input.is_some();
                    if *owner != Some(1) || !changes {
                        assert_eq!(got[row.clone()], x[row.clone()]);
                        assert_eq!(got_bits[row.clone()], bits[row]);
                        continue;
                    }
                    let (gain, shift) = match gain {
                        Gain::In => (vectors.input.as_deref(), None),
                        Gain::Out => (vectors.output.as_deref(), vectors.shift.as_deref()),
                    };
                    let what = format!("{width} {index} row {t}");
                    let want = reference(&to_f64(&x[row.clone()]), gain, shift);
                    assert_close(&to_f64(&got[row.clone()]), &want, 1e-6, &what);
                    let numbers = |bits: &[u16]| -> Vec<f64> {
                        bits.iter().map(|&bits| from_half(half, bits)).collect()
                    };
                    let want = reference(&numbers(&bits[row.clone()]), gain, shift);
                    assert_close(&numbers(&got_bits[row]), &want, precision(half), &what);
                }
            }
        }
    }
}

fn with_bottleneck(
    rng: &mut Rng,
    [width, rank]: [usize; 2],
    index: usize,
    activation: Activation,
) -> LoweredAdapter {
    let [a, b] = [DTYPES[index % 4], DTYPES[(index + 1) % 4]];
    let bottlenecks = vec![Bottleneck {
        site: site(Module::Down),
        reads: BottleneckInput::Output,
        a: tensor(rng, a, [rank, width]),
        a_bias: rng.floats(rank).into(),
        activation,
        b: tensor(rng, b, [rank, width]),
        b_bias: rng.floats(width).into(),
    }];
    LoweredAdapter { bottlenecks, ..LoweredAdapter::default() }
}

/// With the scales of rows.
fn scaled_values(tensor: &AdapterTensor) -> Vec<f64> {
    let scale =
        |row: usize| tensor.row_scales.as_ref().map_or(1.0, |scales| f64::from(scales[row]));
    values(tensor).into_iter().enumerate().map(|(i, v)| v * scale(i / tensor.cols)).collect()
}

const ACTIVATIONS: [Activation; 6] = [
    Activation::Relu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Tanh,
    Activation::Identity,
];

#[test]
fn bottlenecks_of_every_activation_and_type_in_decode_and_in_prefill() {
    let (gpu, mut rng) = (gpu(), Rng::new(11));
    for (index, activation) in ACTIVATIONS.into_iter().enumerate() {
        // Wide enough to be split in prefill, or no multiple of eight.
        let [width, rank] = [[72, 5], [43, 3], [1096, 17]][index % 3];
        let half = HALVES[index % 2];
        let adapters = [
            Adapter::load(&gpu, 1 << 14, LoweredAdapter::default()),
            Adapter::load(
                &gpu,
                1 << 14,
                with_bottleneck(&mut rng, [width, rank], index, activation),
            ),
        ];
        let segments: Segments =
            vec![(1, None), (2, Some(1)), (1, Some(0)), (18, Some(1)), (17, Some(0))];
        let (list, owners) = (work(&adapters, &segments), owners(&segments));
        let num_rows = owners.len();
        let y = rng.floats(num_rows * width);
        let device_y = gpu.upload(&y).unwrap();
        let x = gpu.alloc::<u16>(num_rows * width).unwrap();
        let h = gpu.alloc::<f32>(scratch_len(num_rows, 20, width)).unwrap();
        let behind = site_index(site(Module::Down), NUM_LAYERS);
        let behind = bottleneck_index(behind, NUM_LAYERS, BottleneckInput::Output).unwrap();
        let target = LoraTarget { site: behind, num_outputs: width, out: device_y.ptr() };
        for (kind, pieces) in [(Pieces::Decode, list.decode()), (Pieces::Prefill, list.prefill())] {
            let device_pieces = gpu.upload(pieces).unwrap();
            let input = LoraInput {
                pieces: device_pieces.ptr(),
                num_pieces: pieces.len(),
                x: x.ptr(),
                num_inputs: width,
                num_rows,
                max_rank: 20,
                h: h.ptr(),
            };
            // SAFETY: the buffers are as long as the shapes say.
            unsafe { bottleneck(&gpu, (half, kind), &input, target) }.unwrap();
        }
        let got = device_y.read(0..y.len()).unwrap();
        let of = &adapters[1].lowered.bottlenecks[0];
        let (a, b) = (scaled_values(&of.a), scaled_values(&of.b));
        let (a_bias, b_bias) = (&*of.a_bias, &*of.b_bias);
        let want = Reference { a: &a, a_bias, activation, b: &b, b_bias };
        for (t, owner) in owners.iter().enumerate() {
            let row = t * width..(t + 1) * width;
            if *owner != Some(1) {
                assert_eq!(got[row.clone()], y[row]);
                continue;
            }
            let want = want.apply(&to_f64(&y[row.clone()]));
            let what = format!("{activation:?} {half:?} row {t}");
            assert_close(&to_f64(&got[row]), &want, 4.0 * precision(half), &what);
        }
    }
}

#[test]
fn the_residual_stream_waits_for_rows_that_an_adapter_changes_and_no_others() {
    const WIDTH: usize = 1100;
    let (gpu, mut rng) = (gpu(), Rng::new(12));
    // Of the two sites, V has a shift, and Down a bottleneck.
    let adapters = [
        Adapter::load(&gpu, 1 << 14, LoweredAdapter::default()),
        Adapter::load(&gpu, 1 << 14, with_vectors(&mut rng, WIDTH)),
        Adapter::load(&gpu, 1 << 14, with_bottleneck(&mut rng, [WIDTH, 2], 0, Activation::Relu)),
    ];
    let segments: Segments = vec![(1, Some(0)), (2, Some(1)), (1, None), (2, Some(2))];
    let (list, owners) = (work(&adapters, &segments), owners(&segments));
    let pieces = gpu.upload(list.decode()).unwrap();
    let pieces = (pieces.ptr(), pieces.len());
    let down = site_index(site(Module::Down), NUM_LAYERS);
    for (module, changed) in [(Module::V, vec![1, 2]), (Module::Down, vec![2])] {
        let before = rng.floats(6 * WIDTH);
        let y = gpu.upload(&before).unwrap();
        let aside = gpu.alloc::<f32>(6 * WIDTH).unwrap();
        let call = Aside {
            site: site_index(site(module), NUM_LAYERS),
            bottleneck: bottleneck_index(down, NUM_LAYERS, BottleneckInput::Output).unwrap(),
            y: y.ptr(),
            aside: aside.ptr(),
            width: WIDTH,
        };
        // SAFETY: the buffers are as long as the shapes say.
        unsafe { call.set_aside(&gpu, pieces) }.unwrap();
        let between = y.read(0..before.len()).unwrap();
        for (t, owner) in owners.iter().enumerate() {
            let row = t * WIDTH..(t + 1) * WIDTH;
            if owner.is_some_and(|owner| changed.contains(&owner)) {
                assert!(between[row].iter().all(|&value| value == 0.0));
            } else {
                assert_eq!(between[row.clone()], before[row]);
            }
        }
        // SAFETY: the buffers are as long as the shapes say.
        unsafe { call.put_back(&gpu, pieces) }.unwrap();
        assert_eq!(y.read(0..before.len()).unwrap(), before);
    }
}

#[test]
fn a_layout_says_what_there_is_at_which_site() {
    let mut rng = Rng::new(13);
    let mut lowered = with_vectors(&mut rng, 8);
    lowered.bottlenecks = with_bottleneck(&mut rng, [8, 1], 0, Activation::Relu).bottlenecks;
    let packed = PackedAdapter::pack(&lowered, 1 << 12).unwrap();
    let parts = site_parts(&packed.layout, NUM_LAYERS);
    let at = |module| parts[site_index(site(module), NUM_LAYERS) as usize];
    assert_eq!(at(Module::Q), SiteParts::INPUT_GAIN.or(SiteParts::OUTPUT));
    assert_eq!([at(Module::K), at(Module::V)], [SiteParts::OUTPUT; 2]);
    assert_eq!(at(Module::Down), SiteParts::BOTTLENECK);
    assert_eq!(at(Module::O), SiteParts::default());
    let base = PackedAdapter::pack(&LoweredAdapter::default(), 1 << 12).unwrap();
    assert!(site_parts(&base.layout, NUM_LAYERS).is_empty());
}
