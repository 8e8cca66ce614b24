//! Embedding lookups against their reference.

use crate::support::{HALVES, Rng, assert_close, gpu, to_f64};
use crate::weights::{FORMATS, weights};
use weft_cuda::ops::embedding;

#[test]
fn tokens_get_their_rows() {
    let (gpu, mut rng) = (gpu(), Rng::new(21));
    let tokens = [7u32, 0, 22, 7, 16];
    for half in HALVES {
        for format in FORMATS {
            let weights = weights(&gpu, half, format, [23, 128], &mut rng);
            let dt = gpu.upload(&tokens).unwrap();
            let out = gpu.alloc::<f32>(tokens.len() * 128).unwrap();
            let operands = (dt.ptr(), out.ptr());
            // SAFETY: the buffers are as long as the shapes say.
            unsafe { embedding::embed(&gpu, &weights.linear, operands, tokens.len()) }.unwrap();
            let want = embedding::reference(&weights.values, 128, &tokens);
            let got = to_f64(&out.read(0..out.len()).unwrap());
            assert_close(&got, &want, 1e-6, &format!("{half:?} {format:?}"));
        }
    }
}

#[test]
fn a_token_beyond_the_vocabulary_gives_nans_in_its_row_only() {
    let (gpu, mut rng) = (gpu(), Rng::new(22));
    let weights = weights(&gpu, HALVES[0], FORMATS[1], [20, 64], &mut rng);
    let tokens = gpu.upload(&[20u32, 19]).unwrap();
    let out = gpu.alloc::<f32>(2 * 64).unwrap();
    // SAFETY: the buffers are as long as the shapes say.
    unsafe { embedding::embed(&gpu, &weights.linear, (tokens.ptr(), out.ptr()), 2) }.unwrap();
    let got = out.read(0..128).unwrap();
    assert!(got[..64].iter().all(|value| value.is_nan()));
    assert!(got[64..].iter().all(|value| value.is_finite()));
}
