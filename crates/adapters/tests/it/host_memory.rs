//! The budget of host memory: who is evicted, who stays, who waits, and that nothing is counted
//! twice or forgotten.

use crate::world::{World, loading_bytes};
use std::sync::Arc;
use std::time::Duration;
use weft_adapters::{AdapterDtype, AdapterError, AdapterTier, load_peft_dir};
use weft_testkit::tiny_llama_spec;
use weft_types::{Dtype, LowRankUpdate, PackedAdapter, PackedMatrix, PackedUpdate};

/// Room for `num` adapters of rank 8, and for a few bytes more.
fn room_for(num: usize) -> World {
    World::with(|config| {
        config.host_memory_bytes = Some(loading_bytes(8) * num + 4096);
        config.room_timeout = Duration::from_millis(300);
    })
}

#[tokio::test]
async fn an_evicted_adapter_stays_known_and_is_read_again_from_where_it_came() {
    let world = room_for(1);
    let (a, b) = (world.write("a", 8, 1), world.write("b", 8, 2));
    world.write("adapters/c", 8, 3);
    world.registry.add_static("a", &a).unwrap();
    world.registry.load("b", &b, false).await.unwrap();
    for _ in 0..3 {
        for (name, others) in [("a", ["b", "c"]), ("b", ["a", "c"]), ("c", ["a", "b"])] {
            assert_eq!(world.rank(name).await, Some(8));
            assert_eq!(world.tier(name), AdapterTier::Host);
            assert_eq!(others.map(|other| world.tier(other)), [AdapterTier::Source; 2]);
            world.registry.check_integrity().unwrap();
        }
    }
    let info = world.info("a");
    assert_eq!((info.rank, info.hits, info.num_leases, &info.path), (Some(8), 3, 0, &a));
    assert!(info.num_bytes > 0 && info.content_hash.is_some() && info.last_used.is_some());
    let stats = world.registry.stats();
    assert_eq!((stats.num_known, stats.num_in_host, stats.evictions), (3, 1, 10));
    assert_eq!((stats.loads_ok, stats.loads_failed, stats.dedup_hits), (11, 0, 0));
    assert!(stats.load_seconds > 0.0 && stats.bytes_read > 11 * info.num_bytes as u64);
    // Known is known: the name is taken.
    let taken = world.registry.load("a", &b, false).await.unwrap_err();
    assert!(matches!(taken, AdapterError::AlreadyLoaded { .. }));
    world.audit().await;
}

#[tokio::test]
async fn new_content_found_after_an_eviction_is_another_generation() {
    let world = room_for(1);
    let (a, b) = (world.write("a", 8, 1), world.write("b", 8, 2));
    world.registry.load("a", &a, false).await.unwrap();
    let before = world.registry.resolve("a").await.unwrap().content_hash();
    world.registry.load("b", &b, false).await.unwrap();
    world.write("a", 7, 3);
    let after = world.registry.resolve("a").await.unwrap();
    assert_ne!(before, after.content_hash());
    assert_eq!(after.weights().max_rank(), 7);
    world.audit().await;
}

#[tokio::test]
async fn an_adapter_larger_than_the_budget_is_refused_with_both_numbers() {
    let budget = loading_bytes(8);
    let world = World::with(|config| config.host_memory_bytes = Some(budget));
    world.write("adapters/large", 16, 1);
    world.write("adapters/small", 7, 1);
    assert_eq!(world.rank("small").await, Some(7));
    let error = world.registry.resolve("large").await.unwrap_err();
    let AdapterError::HostMemoryTooSmall { needed, .. } = error else { panic!("{error}") };
    let words = error.to_string();
    assert!(needed > budget && words.contains(&needed.to_string()), "{words}");
    assert!(words.contains(&budget.to_string()), "{words}");
    assert!(words.contains("--adapter-host-memory"), "{words}");
    // And nobody had to go for it.
    assert_eq!(world.tier("small"), AdapterTier::Host);
    world.audit().await;
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_room_waits_for_leases_and_then_says_so() {
    let world = room_for(1);
    world.write("adapters/a", 8, 1);
    world.write("adapters/b", 8, 2);
    let lease = world.registry.resolve("a").await.unwrap();
    let clone = lease.clone();
    let error = world.registry.resolve("b").await.unwrap_err();
    assert!(matches!(error, AdapterError::HostMemoryFull { .. }), "{error}");
    assert!(error.to_string().contains("kept them for 0.3 s; ask again later"), "{error}");
    // Not the source's fault: the next one waits again, and gets it once the last lease is gone.
    let waiting = world.resolve("b");
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(lease);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    assert_eq!(world.registry.stats().num_loading, 1);
    drop(clone);
    assert_eq!(waiting.await.unwrap().unwrap().weights().max_rank(), 8);
    assert_eq!(world.tier("a"), AdapterTier::Source);
    world.audit().await;
}

#[tokio::test]
async fn who_finds_no_room_does_not_keep_others_from_theirs() {
    let world = World::with(|config| {
        config.host_memory_bytes = Some(loading_bytes(8) + loading_bytes(2) + 4096);
    });
    world.write("adapters/held", 8, 1);
    world.write("adapters/large", 8, 2);
    world.write("adapters/small", 1, 3);
    let lease = world.registry.resolve("held").await.unwrap();
    let waiting = world.resolve("large");
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(world.rank("small").await, Some(1));
    assert!(!waiting.is_finished());
    drop(lease);
    assert!(waiting.await.unwrap().is_ok());
    world.audit().await;
}

#[tokio::test]
async fn a_replaced_or_unloaded_adapter_counts_until_its_last_lease() {
    let world = room_for(2);
    let (a, b) = (world.write("a", 8, 1), world.write("b", 8, 2));
    world.registry.load("a", &a, false).await.unwrap();
    let old = world.registry.resolve("a").await.unwrap();
    let one = world.registry.stats().host_bytes;
    world.registry.load("a", &b, true).await.unwrap();
    assert_eq!(world.registry.stats().host_bytes, 2 * one);
    let new = world.registry.resolve("a").await.unwrap();
    world.registry.unload("a").await.unwrap();
    assert_eq!(world.registry.stats().host_bytes, 2 * one);
    world.registry.check_integrity().unwrap();
    drop(new);
    assert_eq!(world.registry.stats().host_bytes, one);
    drop(old);
    assert_eq!(world.registry.stats().host_bytes, 0);
    world.audit().await;
}

#[tokio::test(start_paused = true)]
async fn pinned_adapters_stay_until_they_are_unpinned() {
    let world = room_for(2);
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        world.write(&format!("adapters/{name}"), 8, seed);
    }
    assert!(world.registry.pin("a").await.unwrap().pinned);
    for _ in 0..3 {
        assert_eq!(world.rank("b").await, Some(8));
        assert_eq!(world.rank("c").await, Some(8));
        assert_eq!(world.tier("a"), AdapterTier::Host);
    }
    assert!(world.registry.pin_static("c").unwrap().pinned);
    let full = world.registry.resolve("b").await.unwrap_err();
    assert!(matches!(full, AdapterError::HostMemoryFull { .. }));
    // A replacement inherits the pin.
    let other = world.write("other", 8, 4);
    world.registry.unpin("c").unwrap();
    assert!(world.registry.load("a", &other, true).await.unwrap().pinned);
    world.registry.check_integrity().unwrap();
    let waiting = world.registry.pin("b").await.unwrap();
    assert!(waiting.pinned && world.tier("c") == AdapterTier::Source);
    let late = world.resolve("c");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!world.registry.unpin("a").unwrap().pinned);
    assert!(late.await.unwrap().is_ok());
    for unknown in ["nobody", "adapters/a"] {
        assert!(matches!(world.registry.pin(unknown).await, Err(AdapterError::NotFound { .. })));
        assert!(matches!(world.registry.unpin(unknown), Err(AdapterError::NotFound { .. })));
    }
    world.registry.unload("b").await.unwrap();
    world.audit().await;
}

#[tokio::test]
async fn the_least_used_goes_first() {
    let world = room_for(3);
    for (name, seed) in [("often", 1), ("seldom", 2), ("sometimes", 3), ("new", 4)] {
        world.write(&format!("adapters/{name}"), 8, seed);
    }
    // Far apart, because what a load costs is measured, and this machine is shared.
    for (name, times) in [("sometimes", 3000), ("often", 5000), ("seldom", 1)] {
        for _ in 0..times {
            world.rank(name).await.unwrap();
        }
    }
    world.rank("new").await.unwrap();
    assert_eq!(world.tier("seldom"), AdapterTier::Source);
    assert_eq!(world.tier("often"), AdapterTier::Host);
    world.audit().await;
}

#[tokio::test]
async fn equal_bytes_count_once_and_leave_together() {
    let world = room_for(2);
    for name in ["a", "b"] {
        world.write(&format!("adapters/{name}"), 8, 1);
    }
    let one = world.registry.resolve("a").await.unwrap();
    let bytes = world.registry.stats().host_bytes;
    let two = world.registry.resolve("b").await.unwrap();
    assert!(Arc::ptr_eq(one.weights(), two.weights()));
    let stats = world.registry.stats();
    assert_eq!((stats.host_bytes, stats.num_in_host, stats.dedup_hits), (bytes, 2, 1));
    drop(one);
    for (name, seed) in [("c", 3), ("d", 4)] {
        world.write(&format!("adapters/{name}"), 8, seed);
    }
    // Held under one of its names is held.
    world.rank("c").await.unwrap();
    world.rank("d").await.unwrap();
    assert_eq!(world.tier("a"), AdapterTier::Host);
    drop(two);
    let _c = world.registry.resolve("c").await.unwrap();
    let _d = world.registry.resolve("d").await.unwrap();
    assert_eq!(["a", "b"].map(|name| world.tier(name)), [AdapterTier::Source; 2]);
    world.registry.check_integrity().unwrap();
    drop((_c, _d));
    world.audit().await;
}

#[tokio::test(start_paused = true)]
async fn packing_may_take_more_than_the_files_without_breaking_the_budget() {
    // Chunks hold one row and most of another: pages are nearly half empty.
    let chunk_bytes = tiny_llama_spec().intermediate_size * 4 + 448;
    let unbounded = World::with(|config| config.chunk_bytes = chunk_bytes);
    unbounded.write("adapters/a", 4, 1);
    unbounded.rank("a").await.unwrap();
    let packed = unbounded.info("a").num_bytes;
    assert!(packed > loading_bytes(4) + 1000, "{packed}");
    let world = World::with(|config| {
        config.chunk_bytes = chunk_bytes;
        // Room for one and for the files of another.
        config.host_memory_bytes = Some(2 * packed - 1);
        config.room_timeout = Duration::from_millis(200);
    });
    for (name, seed) in [("a", 1), ("b", 2)] {
        world.write(&format!("adapters/{name}"), 4, seed);
    }
    let lease = world.registry.resolve("a").await.unwrap();
    let error = world.registry.resolve("b").await.unwrap_err();
    let AdapterError::HostMemoryFull { needed, .. } = error else { panic!("{error}") };
    assert_eq!(needed, packed);
    world.registry.check_integrity().unwrap();
    let waiting = world.resolve("b");
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(lease);
    assert_eq!(waiting.await.unwrap().unwrap().weights().max_rank(), 4);
    world.audit().await;
}

#[tokio::test]
async fn a_row_larger_than_a_chunk_is_a_refusal_of_that_adapter() {
    let world = World::with(|config| config.chunk_bytes = 256);
    world.write("adapters/a", 4, 1);
    // Rows of 64 f32 are 256 bytes, those of 128 would be 512 and become float16: 256.
    assert_eq!(world.rank("a").await, Some(4));
    let world = World::with(|config| config.chunk_bytes = 255);
    world.write("adapters/a", 4, 1);
    let error = world.registry.resolve("a").await.unwrap_err().to_string();
    assert!(error.starts_with("adapter \"a\" has a matrix row of 256 bytes"), "{error}");
    world.registry.check_integrity().unwrap();
}

fn unpacked(packed: &PackedAdapter, matrix: &PackedMatrix) -> Vec<u8> {
    let runs = matrix.runs.iter().enumerate();
    let rows = runs.flat_map(|(index, run)| {
        let next = matrix.runs.get(index + 1).map_or(matrix.rows, |next| next.first_row as usize);
        let len = (next - run.first_row as usize) * matrix.row_bytes();
        &packed.pages[run.page as usize][run.offset as usize..][..len]
    });
    rows.copied().collect()
}

/// `(x A^T) B` in double precision, `x` being all ones but alternating in sign.
fn exact(update: &LowRankUpdate) -> Vec<f64> {
    let values = |data: &[u8]| -> Vec<f64> {
        data.as_chunks::<4>().0.iter().map(|&bits| f64::from(f32::from_le_bytes(bits))).collect()
    };
    let (a, b) = (values(&update.a.data), values(&update.b.data));
    let scales = vec![update.scale; update.rank()];
    product(&a, &b, update.a.cols, update.b.cols, &scales)
}

fn quantized(packed: &PackedAdapter, update: &PackedUpdate) -> Vec<f64> {
    let values = |matrix: &PackedMatrix| -> Vec<f64> {
        assert_eq!(matrix.dtype, Dtype::I8);
        unpacked(packed, matrix).iter().map(|&byte| f64::from(byte.cast_signed())).collect()
    };
    let (a, b) = (values(&update.a), values(&update.b));
    product(&a, &b, update.a.cols, update.b.cols, &update.scales)
}

fn product(a: &[f64], b: &[f64], num_in: usize, num_out: usize, scales: &[f32]) -> Vec<f64> {
    let mut y = vec![0.0; num_out];
    for (j, &scale) in scales.iter().enumerate() {
        let signed = |(i, value): (usize, &f64)| if i % 2 == 0 { *value } else { -value };
        let row = &a[j * num_in..][..num_in];
        let shrunk: f64 = row.iter().enumerate().map(signed).sum::<f64>() * f64::from(scale);
        y.iter_mut().zip(&b[j * num_out..]).for_each(|(y, b)| *y += shrunk * b);
    }
    y
}

#[tokio::test]
async fn eight_bit_adapters_are_a_quarter_as_large_and_nearly_as_exact() {
    let world = World::with(|config| config.dtype = AdapterDtype::I8);
    let path = world.write("adapters/a", 16, 1);
    world.write("adapters/same", 16, 1);
    let limits = weft_adapters::LoadLimits::default();
    let lowered = load_peft_dir(&path, &tiny_llama_spec(), &limits).unwrap();
    let lease = world.registry.resolve("a").await.unwrap();
    let packed = lease.weights();
    assert!(packed.num_bytes < lowered.num_bytes() * 3 / 10);
    for update in &lowered.low_rank {
        let exact = exact(update);
        let close = quantized(packed, packed.at(update.site).unwrap());
        let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let error: Vec<_> = exact.iter().zip(&close).map(|(a, b)| a - b).collect();
        let relative = norm(&error) / norm(&exact);
        assert!(relative < 0.02, "{:?}: {relative}", update.site);
    }
    let same = world.registry.resolve("same").await.unwrap();
    assert!(Arc::ptr_eq(packed, same.weights()));
    drop((lease, same));
    world.audit().await;
}
