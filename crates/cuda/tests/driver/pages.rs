//! Adapters on their way to the device: from pinned memory without a copy in between, from other memory
//! through the ring.

use crate::fake::{allow_pins, calls, forget_calls, leaks, under_fake};
use crate::open;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use weft_cuda::driver::Stream;
use weft_cuda::real::RealDriver;
use weft_cuda::{CudaAdapter, CudaArena, Gpu, PinnedPages};
use weft_types::{
    AdapterTensor, BlockId, ContentHash, Dtype, LowRankUpdate, Module, PackedAdapter, Packer,
    PageAllocator, Site,
};

const CHUNK_BYTES: usize = 128 << 10;
const RING: &str = "from 16777216 pinned";

static NUM_REFUSALS: AtomicUsize = AtomicUsize::new(0);

fn pinned(gpu: &Gpu) -> Arc<dyn PageAllocator> {
    Arc::new(PinnedPages::new(gpu, |_| {
        NUM_REFUSALS.fetch_add(1, Ordering::Relaxed);
    }))
}

fn tensor(rows: usize, cols: usize, seed: u8) -> AdapterTensor {
    let data = (0..rows * cols * 2).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed));
    AdapterTensor { dtype: Dtype::F16, rows, cols, data: data.collect(), row_scales: None }
}

/// Of two pages, the second of which is short.
fn pack(mut packer: Packer, seed: u8) -> PackedAdapter {
    // All differ: equal matrices would be packed once.
    for layer in 0..2u8 {
        let site = Site::Layer { layer: layer.into(), module: Module::Q };
        let seed = seed + 2 * layer;
        let (a, b) = (tensor(11, 2048, seed), tensor(11, 2048, seed + 1));
        packer.push(&LowRankUpdate { site, scale: 1.0, a, b }).expect("rows fit");
    }
    let packed = packer.finish(ContentHash([seed; 32]));
    assert_eq!(packed.num_chunks, 2);
    packed
}

fn place(arena: &CudaArena, packed: &PackedAdapter) -> CudaAdapter {
    let chunks: Vec<BlockId> = (0..packed.num_chunks as u32).map(|i| BlockId(2 * i)).collect();
    CudaAdapter::place(packed, arena.lend(&chunks)).expect("the fake GPU works")
}

fn assert_there(gpu: &Gpu, arena: &CudaArena, packed: &PackedAdapter) {
    for (index, page) in packed.pages.iter().enumerate() {
        let mut bytes = vec![0; page.len()];
        let from = arena.ptr().add(2 * index * CHUNK_BYTES);
        // SAFETY: inside of the arena, where nothing is written.
        unsafe { gpu.driver().download(Stream::Copy, from, &mut bytes) }
            .expect("the fake GPU works");
        assert_eq!(bytes, **page, "page {index}");
    }
}

/// The copies to the device: their sizes, and where from.
fn uploads() -> Vec<String> {
    calls().into_iter().filter_map(|call| Some(call.strip_prefix("upload ")?.to_owned())).collect()
}

#[test]
fn pinned_pages_go_to_the_device_without_the_ring() {
    under_fake("pages::pinned_pages_go_to_the_device_without_the_ring", &[], || {
        let gpu = open();
        let arena = CudaArena::new(&gpu, 8, CHUNK_BYTES, 2).unwrap();
        let packed = pack(Packer::in_pages_of(pinned(&gpu), CHUNK_BYTES), 1);
        forget_calls();
        let placed = place(&arena, &packed);
        let uploads = uploads();
        let (table, pages) = uploads.split_first().unwrap();
        assert!(table.ends_with(RING), "{table}");
        let sizes = packed.pages.iter().map(|page| {
            format!("{} from {} pinned", page.len(), page.len().next_multiple_of(64 << 10))
        });
        assert_eq!(pages, sizes.collect::<Vec<_>>());
        let num_waits = calls().iter().filter(|call| *call == "synchronize").count();
        assert_eq!(num_waits, 1, "pages and table together");
        assert_there(&gpu, &arena, &packed);
        drop((placed, packed, arena, gpu));
        assert_eq!(leaks(), 0);
    });
}

#[test]
fn other_pages_go_through_the_ring() {
    under_fake("pages::other_pages_go_through_the_ring", &[], || {
        let gpu = open();
        let arena = CudaArena::new(&gpu, 8, CHUNK_BYTES, 2).unwrap();
        let packed = pack(Packer::new(CHUNK_BYTES), 1);
        forget_calls();
        let _placed = place(&arena, &packed);
        let uploads = uploads();
        assert_eq!(uploads.len(), 1 + packed.num_chunks);
        assert!(uploads.iter().all(|upload| upload.ends_with(RING)), "{uploads:?}");
        assert_there(&gpu, &arena, &packed);
    });
}

#[test]
fn only_pinned_memory_is_read_later() {
    under_fake("pages::only_pinned_memory_is_read_later", &[], || {
        let gpu = open();
        let target = gpu.alloc::<u8>(4).unwrap();
        let pages = pinned(&gpu);
        let mut pinned = pages.lend(4);
        let mut heap = [1u8; 4];
        let read = || {
            let mut bytes = [0; 4];
            // SAFETY: as long as the buffer.
            unsafe { gpu.driver().download(Stream::Copy, target.ptr(), &mut bytes) }.unwrap();
            bytes
        };
        (*pinned).as_mut().fill(1);
        // SAFETY: as long as the buffer. That what is copied changes is the point of this test.
        unsafe {
            let bytes = &(*pinned).as_ref()[..4];
            gpu.driver().enqueue_upload(Stream::Copy, target.ptr(), bytes).unwrap();
        }
        (*pinned).as_mut().fill(2);
        assert_eq!(read(), [2; 4], "read when the stream came to it");
        // SAFETY: as above.
        unsafe { gpu.driver().enqueue_upload(Stream::Copy, target.ptr(), &heap) }.unwrap();
        heap.fill(3);
        assert_eq!(read(), [1; 4], "{heap:?} came too late");
    });
}

#[test]
fn pinned_memory_is_used_again() {
    under_fake("pages::pinned_memory_is_used_again", &[], || {
        let gpu = open();
        let pages = pinned(&gpu);
        let first = pack(Packer::in_pages_of(Arc::clone(&pages), CHUNK_BYTES), 1);
        drop(first);
        forget_calls();
        let second = pack(Packer::in_pages_of(Arc::clone(&pages), CHUNK_BYTES), 9);
        assert_eq!(second, pack(Packer::new(CHUNK_BYTES), 9), "nothing of the first is left");
        assert_eq!(calls(), [] as [&str; 0], "neither pinned nor unpinned");
        drop((pages, second));
        assert_eq!(calls(), ["unpin"; 3]);
    });
}

#[test]
fn what_cannot_be_pinned_works_as_well() {
    under_fake("pages::what_cannot_be_pinned_works_as_well", &[], || {
        let gpu = open();
        let arena = CudaArena::new(&gpu, 8, CHUNK_BYTES, 2).unwrap();
        let pages = pinned(&gpu);
        allow_pins(1);
        let packed = pack(Packer::in_pages_of(pages, CHUNK_BYTES), 1);
        assert_eq!(NUM_REFUSALS.load(Ordering::Relaxed), 1, "told once");
        forget_calls();
        let _placed = place(&arena, &packed);
        assert_eq!(uploads().iter().filter(|upload| upload.ends_with(RING)).count(), 2);
        assert_there(&gpu, &arena, &packed);
    });
}

#[test]
fn a_device_that_opens_half_way_keeps_nothing() {
    under_fake("pages::a_device_that_opens_half_way_keeps_nothing", &[], || {
        // A ring and a landing for each of two streams.
        for num_pins in 0..4 {
            allow_pins(num_pins);
            let error = RealDriver::open(0).unwrap_err().to_string();
            assert!(error.contains("pinning"), "{error}");
            assert_eq!(leaks(), 0, "after {num_pins}");
        }
        allow_pins(4);
        drop(RealDriver::open(0).unwrap());
        assert_eq!(leaks(), 0);
    });
}
