//! Norms against their reference.

use crate::support::{HALVES, Rng, assert_close, gpu, halves, precision, to_f64, to_halves};
use weft_cuda::ops::norm;

#[test]
fn rms_norm_matches_its_reference() {
    let (gpu, mut rng) = (gpu(), Rng::new(1));
    for half in HALVES {
        for (num_rows, width) in [(1, 1), (3, 31), (2, 576), (5, 1500)] {
            let (x, weight) = (rng.floats(num_rows * width), rng.floats(width));
            let out = gpu.alloc::<u16>(x.len()).unwrap();
            let (dx, dw) = (gpu.upload(&x).unwrap(), gpu.upload(&weight).unwrap());
            let operands = (dx.ptr(), dw.ptr(), out.ptr());
            // SAFETY: the buffers are as long as the shapes say.
            unsafe { norm::rms_norm(&gpu, half, operands, [num_rows, width], 1e-5) }.unwrap();
            let want = norm::reference(&to_f64(&x), &weight, 1e-5);
            let what = format!("{half:?} [{num_rows}, {width}]");
            assert_close(&halves(half, &out), &want, precision(half), &what);
        }
    }
}

#[test]
fn norms_of_heads_work_in_place() {
    let (gpu, mut rng) = (gpu(), Rng::new(2));
    for half in HALVES {
        let (x, weight) = (to_halves(half, &rng.floats(6 * 64)), rng.floats(64));
        let (mut dx, dw) = (gpu.alloc::<u16>(x.len()).unwrap(), gpu.upload(&weight).unwrap());
        dx.write(0, &x).unwrap();
        let before = halves(half, &dx);
        // SAFETY: the buffers are as long as the shapes say.
        unsafe { norm::head_norm(&gpu, half, (dx.ptr(), dw.ptr()), [6, 64], 1e-6) }.unwrap();
        let want = norm::reference(&before, &weight, 1e-6);
        assert_close(&halves(half, &dx), &want, precision(half), &format!("{half:?}"));
    }
}
