//! All of it, on the emulated driver, with a clock that it does not have.

use super::*;

#[test]
fn a_bound_is_the_slower_of_bytes_and_operations() {
    let rates = Rates { bytes_per_s: 1e12, flops_per_s: 1e14 };
    let work = |bytes, flops| Work { bytes, flops };
    assert_eq!(rates.bound_ms(work(2e9, 1e9)), 2.0);
    assert_eq!(rates.bound_ms(work(1e9, 4e11)), 4.0);
    assert!(!rates.is_compute_bound(work(2e9, 1e9)) && rates.is_compute_bound(work(1e9, 4e11)));
    let mut row = KernelRow {
        op: "copy".into(),
        shape: "[1]".into(),
        error: 0.0,
        tolerance: 0.0,
        work: work(2e9, 1e9),
        ms: None,
    };
    assert_eq!(rates.share_of_bound(&row), None);
    row.ms = Some(4.0);
    assert_eq!(rates.share_of_bound(&row), Some(0.5));
}

#[test]
fn what_is_no_number_is_never_right() {
    let row = |error| KernelRow {
        op: String::new(),
        shape: String::new(),
        error,
        tolerance: 1.0,
        work: Work::default(),
        ms: None,
    };
    assert!(row(1.0).is_right());
    for error in [1.1, f64::NAN, f64::INFINITY] {
        assert!(!row(error).is_right(), "{error}");
    }
    let nan = inputs::Deviation::of(&[f64::NAN, 1.0], &[1.0, 1.0]);
    assert_eq!(nan, f64::INFINITY);
}
