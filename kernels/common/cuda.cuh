// The base of all kernels: CUDA or its emulation, number types, and what a warp does together.
#pragma once

#ifdef WEFT_EMULATED
#include "../emulated/cuda.hpp"
#else
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// A kernel: WEFT_KERNEL(name, Params, max_threads) { ... p.field ... }
// It takes one struct, so that a launch is a name, a grid and some bytes.
#define WEFT_KERNEL(name, Params, max_threads) WEFT_KERNEL_BLOCKS(name, Params, max_threads, 1)
#define WEFT_KERNEL_BLOCKS(name, Params, max_threads, min_blocks)                               \
    extern "C" __global__ void __launch_bounds__(max_threads, min_blocks)                       \
        name(const __grid_constant__ Params p)

// The dynamic shared memory of the block, aligned to 128 bytes.
__device__ __forceinline__ unsigned char *dynamic_shared() {
    extern __shared__ __align__(128) unsigned char weft_dynamic_shared[];
    return weft_dynamic_shared;
}
#endif

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

using f16 = __half;
using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(f16 x) { return __half2float(x); }
__device__ __forceinline__ float to_f32(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
// Saturates: one infinity would poison every later read. NaNs stay: who checks must find them.
template <> __device__ __forceinline__ f16 from_f32<f16>(float x) {
    return __float2half_rn(x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x);
}
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) { return __float2bfloat16_rn(x); }

__device__ __forceinline__ int lane_index() { return threadIdx.x % kWarpSize; }
__device__ __forceinline__ int warp_index() { return threadIdx.x / kWarpSize; }

// The sum over a warp, in every lane, always in the same order.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kFullWarp, x, lanes);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
        x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, lanes));
    }
    return x;
}

// Over a block of whole warps, in every thread. `scratch`: 32 floats of shared memory, free again
// only after the next barrier.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
    x = warp_sum(x);
    if (lane_index() == 0) scratch[warp_index()] = x;
    __syncthreads();
    const int num_warps = blockDim.x / kWarpSize;
    return warp_sum(lane_index() < num_warps ? scratch[lane_index()] : 0.0f);
}

// Sixteen bytes at once: eight 16-bit numbers.
template <typename T> struct alignas(16) Vec8 {
    T x[8];
};
template <typename T> __device__ __forceinline__ Vec8<T> load8(const T *pointer) {
    return *reinterpret_cast<const Vec8<T> *>(pointer);
}
template <typename T> __device__ __forceinline__ void store8(T *pointer, const Vec8<T> &value) {
    *reinterpret_cast<Vec8<T> *>(pointer) = value;
}
