// Runs CUDA kernels on the host. In: a kernel, a grid, its parameters. Out: what it wrote, or why it
// could not end. Each CUDA thread is a fiber, each block runs on one thread of the host, blocks run
// side by side. Device memory is host memory, so AddressSanitizer sees every access.
//
// A collective (shuffle, vote, mma, barrier) is a place where lanes wait for each other: each brings
// its operands, the last to come computes for all. Between two collectives a thread runs alone; with
// a seed the order of threads is shuffled, so that a missing barrier shows as another result.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft::emulated {

struct Dim3 {
    unsigned x, y, z;
};

// What the running fiber sees of itself.
struct ThreadState {
    Dim3 thread_idx;
    Dim3 block_idx;
    Dim3 block_dim;
    Dim3 grid_dim;
    unsigned lane;
    unsigned char *shared;
};

// The state of the fiber that runs on this host thread.
const ThreadState &current();

// Waits for all threads of the block that have not ended.
void block_barrier();

// Waits for the lanes of `mask`, then runs `op` once on the operands of each: `operands[lane]` is
// null for lanes outside of it.
void warp_collective(unsigned mask, void *operands, void (*op)(void **operands));

// An asynchronous copy: done at `wait`, or at once, as the seed wants it.
void copy_async(void *to, const void *from, size_t num_bytes);
void copy_commit();
void copy_wait(unsigned num_pending);

// Ends the launch with a sentence: for shims that find a misuse.
[[noreturn]] void fail(const char *message);

// Kernels announce themselves before `main`.
struct Registration {
    Registration(const char *name, size_t param_bytes, unsigned max_threads,
                 void (*body)(const void *params));
};

}  // namespace weft::emulated
