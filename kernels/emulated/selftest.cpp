// Kernels that do wrong, so that tests see the emulator notice it. Never compiled for a GPU.
#include "../common/ptx.cuh"

struct SelftestParams {
    uint32_t *out;
    uint32_t num_words;
    uint32_t pad;
};

// Neighbours read what a thread wrote without waiting for it.
WEFT_KERNEL(selftest_race, SelftestParams, 64) {
    __shared__ uint32_t words[64];
    words[threadIdx.x] = threadIdx.x;
    if (p.pad != 0) __syncthreads();
    p.out[threadIdx.x] = words[(threadIdx.x + 1) % 64];
}

// One warp is at the barrier; the other waits for a lane that has ended.
WEFT_KERNEL(selftest_divergent_barrier, SelftestParams, 64) {
    if (threadIdx.x < 32) {
        __syncthreads();
        p.out[threadIdx.x] = 1;
    } else if (threadIdx.x != 40) {
        __shfl_sync(kFullWarp, 1, 0);
    }
}

// One word beyond the end, of device memory or of shared memory.
WEFT_KERNEL(selftest_overflow, SelftestParams, 32) {
    auto *shared = reinterpret_cast<uint32_t *>(dynamic_shared());
    shared[threadIdx.x + p.pad] = 1;
    p.out[p.num_words - 1 - threadIdx.x + (threadIdx.x == 0 && p.pad == 0 ? 1 : 0)] = 2;
}

// An asynchronous copy that nobody waited for.
WEFT_KERNEL(selftest_early_read, SelftestParams, 32) {
    auto *shared = reinterpret_cast<uint32_t *>(dynamic_shared());
    if (threadIdx.x < 4) cp_async_16(shared + 4 * threadIdx.x, p.out + 4 * threadIdx.x);
    cp_async_commit();
    if (p.pad != 0) cp_async_wait<0>();
    __syncthreads();
    if (threadIdx.x < 16) p.out[16 + threadIdx.x] = shared[threadIdx.x];
}
