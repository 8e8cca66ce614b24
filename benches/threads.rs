//! The thread pool alone: `cargo bench -p weft-kernels --bench threads`.
//!
//! Prints microseconds of a run, the median of many, on 1 to 64 threads: of nothing at all, of as much
//! as a layer's linear has in decode, and of the first run after the workers went to sleep. More
//! threads than cores show what waiting for each other costs where the system cannot run all.

use std::hint::black_box;
use std::time::{Duration, Instant};
use weft_kernels::ThreadPool;

const THREADS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Longer than workers wait before they sleep.
const NAP: Duration = Duration::from_millis(5);

fn main() {
    println!("microseconds of a run, median (least; 99th percentile)\n");
    println!(
        "| threads | empty | 36 items of 2 µs | 512 items of 0.2 µs | the first after a nap |"
    );
    println!("|---|---|---|---|---|");
    for num_threads in THREADS {
        let pool = ThreadPool::new(num_threads);
        let empty = times(4000, || pool.run(8 * num_threads, 1, |items| drop(black_box(items))));
        let linear = times(1000, || {
            pool.run(36, 36_usize.div_ceil(8 * num_threads), |items| work(2_000 * items.len()));
        });
        let wide = times(1000, || {
            pool.run(512, 512_usize.div_ceil(8 * num_threads), |items| work(200 * items.len()));
        });
        let mut woken = Vec::new();
        for _ in 0..100 {
            std::thread::sleep(NAP);
            let began = Instant::now();
            pool.run(8 * num_threads, 1, |items| drop(black_box(items)));
            woken.push(began.elapsed());
        }
        let cells = [empty, linear, wide, woken].map(cell).join(" | ");
        println!("| {num_threads} | {cells} |");
    }
}

fn times(num_runs: usize, mut run: impl FnMut()) -> Vec<Duration> {
    let mut time = || {
        let began = Instant::now();
        run();
        began.elapsed()
    };
    (0..num_runs).map(|_| time()).collect()
}

fn cell(mut times: Vec<Duration>) -> String {
    times.sort();
    let at =
        |share: f64| times[(share * (times.len() - 1) as f64) as usize].as_nanos() as f64 / 1e3;
    format!("{:.2} ({:.2}; {:.0})", at(0.5), at(0.0), at(0.99))
}

/// Arithmetic that takes about `nanoseconds` and touches no memory.
fn work(nanoseconds: usize) {
    let mut x = 1.0_f64;
    // A dependent multiply-add takes four cycles, more than a nanosecond.
    for _ in 0..nanoseconds * 2 / 3 {
        x = black_box(x) * 0.999 + 0.001;
    }
    black_box(x);
}
