//! Fits a cost model to measured times. In: what steps and loads held and how long they took. Out:
//! a [`CostModel`], and how well it says again what was measured.

use weft_scheduler::CostModel;

/// What a measured step held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepPoint {
    /// Tokens computed.
    pub num_tokens: usize,
    /// Sum of the ranks of the distinct adapters.
    pub sum_rank: usize,
    /// How long it took.
    pub seconds: f64,
}

/// A measured load of an adapter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadPoint {
    /// Chunks copied.
    pub num_chunks: usize,
    /// How long it took.
    pub seconds: f64,
}

/// Which errors are made small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Errors {
    /// Seconds: ordinary least squares. Long steps count most.
    #[default]
    Absolute,
    /// Shares of the measured time: all steps count the same.
    Relative,
}

/// A cost model, and how good it is.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct FittedCosts {
    /// What was fitted.
    pub costs: CostModel,
    /// Share of the variance of the steps' times that the model explains; 1 is all.
    pub step_r2: f64,
    /// The same for loads.
    pub load_r2: f64,
}

/// Fits both halves of a cost model; no coefficient is negative. What no point tells is 0.
#[must_use]
pub fn fit_costs(steps: &[StepPoint], loads: &[LoadPoint], errors: Errors) -> FittedCosts {
    let steps: Vec<Point> = steps
        .iter()
        .map(|step| Point {
            x: [1.0, step.num_tokens as f64, step.sum_rank as f64],
            y: step.seconds,
        })
        .collect();
    let loads: Vec<Point> = loads
        .iter()
        .map(|load| Point { x: [1.0, load.num_chunks as f64, 0.0], y: load.seconds })
        .collect();
    let [step_s, token_s, rank_s] = least_squares(&steps, errors);
    let load = least_squares(&loads, errors);
    let [load_s, load_chunk_s, _] = load;
    FittedCosts {
        costs: CostModel { step_s, token_s, rank_s, load_s, load_chunk_s },
        step_r2: r_squared(&steps, [step_s, token_s, rank_s]),
        load_r2: r_squared(&loads, load),
    }
}

/// `y ≈ x · b`
#[derive(Clone, Copy, Debug)]
struct Point {
    x: [f64; 3],
    y: f64,
}

impl Point {
    fn error(&self, b: [f64; 3]) -> f64 {
        self.y - dot(self.x, b)
    }

    fn weight(&self, errors: Errors) -> f64 {
        match errors {
            Errors::Absolute => 1.0,
            Errors::Relative => self.y.max(1e-9).powi(-2),
        }
    }
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

/// The coefficients, none negative, with the least sum of squares. With three of them all eight
/// choices of which are 0 can be tried.
fn least_squares(points: &[Point], errors: Errors) -> [f64; 3] {
    // The normal equations, `a · b = c`.
    let (mut a, mut c) = ([[0.0; 3]; 3], [0.0; 3]);
    for point in points {
        let weight = point.weight(errors);
        for i in 0..3 {
            c[i] += weight * point.x[i] * point.y;
            for (sum, x) in a[i].iter_mut().zip(point.x) {
                *sum += weight * point.x[i] * x;
            }
        }
    }
    let squares = |b: [f64; 3]| -> f64 {
        points.iter().map(|point| point.weight(errors) * point.error(b).powi(2)).sum()
    };
    let solutions = (1..8_u8).filter_map(|mask| {
        let is_free = [mask & 1 != 0, mask & 2 != 0, mask & 4 != 0];
        solve(a, c, is_free).filter(|b| b.iter().all(|&value| value >= 0.0))
    });
    let best = solutions.map(|b| (squares(b), b)).min_by(|x, y| x.0.total_cmp(&y.0));
    best.map_or([0.0; 3], |(_, b)| b)
}

/// Gauss-Jordan elimination of the free unknowns, the others being 0; `None` if these are not
/// determined.
fn solve(mut a: [[f64; 3]; 3], mut c: [f64; 3], is_free: [bool; 3]) -> Option<[f64; 3]> {
    for i in (0..3).filter(|&i| !is_free[i]) {
        a[i] = [0.0; 3];
        a.iter_mut().for_each(|row| row[i] = 0.0);
        a[i][i] = 1.0;
        c[i] = 0.0;
    }
    // Columns are tokens, ranks and ones: compare pivots with what was there.
    let scale = [a[0][0], a[1][1], a[2][2]];
    for i in 0..3 {
        // Symmetric and positive: the diagonal is a good pivot, or there is none.
        if a[i][i].is_nan() || a[i][i] <= 1e-12 * scale[i] {
            return None;
        }
        let (pivot_row, pivot_c) = (a[i], c[i]);
        for j in (0..3).filter(|&j| j != i) {
            let factor = a[j][i] / pivot_row[i];
            for (value, pivot) in a[j].iter_mut().zip(pivot_row) {
                *value -= factor * pivot;
            }
            c[j] -= factor * pivot_c;
        }
    }
    Some([c[0] / a[0][0], c[1] / a[1][1], c[2] / a[2][2]])
}

fn r_squared(points: &[Point], b: [f64; 3]) -> f64 {
    let mean = points.iter().map(|point| point.y).sum::<f64>() / points.len().max(1) as f64;
    let unexplained: f64 = points.iter().map(|point| point.error(b).powi(2)).sum();
    let variance: f64 = points.iter().map(|point| (point.y - mean).powi(2)).sum();
    if variance > 0.0 { 1.0 - unexplained / variance } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUE: CostModel =
        CostModel { step_s: 6e-3, token_s: 5e-4, rank_s: 3e-5, load_s: 1e-4, load_chunk_s: 6e-5 };

    /// Steps and loads as `costs` has them, off by up to `noise` of themselves.
    fn points(costs: CostModel, noise: f64) -> (Vec<StepPoint>, Vec<LoadPoint>) {
        let mut sign = -1.0;
        let mut noisy = |seconds: f64| {
            sign = -sign;
            seconds * (1.0 + sign * noise)
        };
        let mut steps = Vec::new();
        for num_tokens in [1, 2, 4, 8, 16, 32, 64, 256, 512] {
            for sum_rank in [0, 8, 64, 256] {
                let seconds = noisy(costs.step(num_tokens, sum_rank));
                steps.push(StepPoint { num_tokens, sum_rank, seconds });
            }
        }
        let load =
            |&num_chunks: &usize| LoadPoint { num_chunks, seconds: noisy(costs.load(num_chunks)) };
        let loads = [3, 14, 27, 106].iter().map(load).collect();
        (steps, loads)
    }

    fn is_near(a: f64, b: f64, share: f64) -> bool {
        (a - b).abs() <= share * b.abs()
    }

    #[test]
    fn exact_points_give_their_model_back() {
        let (steps, loads) = points(TRUE, 0.0);
        for errors in [Errors::Absolute, Errors::Relative] {
            let fit = fit_costs(&steps, &loads, errors);
            assert!(is_near(fit.costs.step_s, TRUE.step_s, 1e-6), "{fit:?}");
            assert!(is_near(fit.costs.token_s, TRUE.token_s, 1e-6), "{fit:?}");
            assert!(is_near(fit.costs.rank_s, TRUE.rank_s, 1e-6), "{fit:?}");
            assert!(is_near(fit.costs.load_s, TRUE.load_s, 1e-6), "{fit:?}");
            assert!(is_near(fit.costs.load_chunk_s, TRUE.load_chunk_s, 1e-6), "{fit:?}");
            assert!(fit.step_r2 > 0.999_999 && fit.load_r2 > 0.999_999, "{fit:?}");
        }
    }

    #[test]
    fn noise_moves_the_model_a_little() {
        let (steps, loads) = points(TRUE, 0.05);
        let fit = fit_costs(&steps, &loads, Errors::Relative);
        assert!(is_near(fit.costs.step_s, TRUE.step_s, 0.1), "{fit:?}");
        assert!(is_near(fit.costs.token_s, TRUE.token_s, 0.1), "{fit:?}");
        assert!((0.9..1.0).contains(&fit.step_r2), "{fit:?}");
    }

    #[test]
    fn no_coefficient_is_negative() {
        // A constant below zero would fit best.
        let (steps, loads) = points(CostModel { step_s: -1e-3, load_s: -1e-4, ..TRUE }, 0.0);
        let costs = fit_costs(&steps, &loads, Errors::Absolute).costs;
        assert_eq!((costs.step_s, costs.load_s), (0.0, 0.0));
        assert!(is_near(costs.token_s, TRUE.token_s, 0.05), "{costs:?}");
    }

    #[test]
    fn what_no_point_tells_is_zero() {
        let fit = fit_costs(&[], &[], Errors::Absolute);
        assert_eq!(fit.costs.step(100, 100) + fit.costs.load(100), 0.0);
        let same = [StepPoint { num_tokens: 1, sum_rank: 0, seconds: 0.01 }; 3];
        let costs = fit_costs(&same, &[], Errors::Absolute).costs;
        assert!(is_near(costs.step(1, 0), 0.01, 1e-9), "{costs:?}");
    }
}
