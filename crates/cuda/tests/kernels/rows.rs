//! Gated activation and gather against their reference.

use crate::support::{HALVES, Rng, assert_close, from_half, gpu, halves, precision, to_halves};
use weft_cuda::ops::rows;

#[test]
fn the_gated_activation_works_in_place() {
    let (gpu, mut rng) = (gpu(), Rng::new(20));
    for half in HALVES {
        for num in [1, 7, 8, 2083] {
            let scaled: Vec<f32> = rng.floats(num).iter().map(|v| v * 12.0).collect();
            let (gate, up) = (to_halves(half, &scaled), to_halves(half, &rng.floats(num)));
            let (dg, du) = (gpu.upload(&gate).unwrap(), gpu.upload(&up).unwrap());
            // SAFETY: the buffers are as long as this says.
            unsafe { rows::silu_mul(&gpu, half, (dg.ptr(), du.ptr()), num) }.unwrap();
            let numbers = |bits: &[u16]| -> Vec<f64> {
                bits.iter().map(|&bits| from_half(half, bits)).collect()
            };
            let want = rows::silu_mul_reference(&numbers(&gate), &numbers(&up));
            assert_close(&halves(half, &dg), &want, precision(half), &format!("{half:?} {num}"));
        }
    }
}

#[test]
fn rows_are_gathered() {
    let (gpu, mut rng) = (gpu(), Rng::new(21));
    for width in [1, 72, 1030, 1300] {
        let x = rng.floats(9 * width);
        let chosen = [8u32, 0, 3, 3];
        let (dx, dr) = (gpu.upload(&x).unwrap(), gpu.upload(&chosen).unwrap());
        let out = gpu.alloc::<f32>(4 * width).unwrap();
        // SAFETY: the buffers are as long as the shapes say.
        unsafe { rows::gather(&gpu, (dx.ptr(), dr.ptr(), out.ptr()), [4, width]) }.unwrap();
        let want: Vec<f32> =
            chosen.iter().flat_map(|&row| x[row as usize * width..][..width].to_vec()).collect();
        assert_eq!(out.read(0..4 * width).unwrap(), want);
    }
}

#[test]
fn halves_are_copied_from_and_to_any_place() {
    let (gpu, mut rng) = (gpu(), Rng::new(22));
    for (num, first) in [(1, 0), (2083, 0), (2048, 0), (77, 3)] {
        let x = to_halves(HALVES[0], &rng.floats(num + first));
        let before = to_halves(HALVES[0], &rng.floats(num + first + 1));
        let (dx, out) = (gpu.upload(&x).unwrap(), gpu.upload(&before).unwrap());
        // SAFETY: the buffers are as long as this says.
        unsafe { rows::copy_halves(&gpu, (dx.at(first), out.at(first)), num) }.unwrap();
        let got = out.read(0..before.len()).unwrap();
        assert_eq!(got[first..first + num], x[first..]);
        assert_eq!(got[first + num], before[first + num]);
        assert_eq!(got[..first], before[..first]);
    }
}
