// y[t,:] += act(y[t,:] A^T + h_bias) B + shift    y:[T,N] f32  A, B:[rank,N]  h_bias:[rank]  shift:[N]
//
// What a bottleneck needs beside the shrink and expand of low-rank updates, and the shift of gains.cu:
//
// narrow:    x[t,:] = y[t,:]                                                    x:[T,N] T
// activate:  h[t,j] = act(sum_s h[s,t,j] + h_bias[j]) * h_scales[j]             h:[splits,T,h_width] f32
//
// Rows without a bottleneck are not touched. Bound: bytes of y and x; launch.
#include "lora.cuh"

struct NarrowParams {
    const LoraPiece *pieces;
    const float *y;
    void *x;
    uint32_t site;
    uint32_t width;
};

struct ActivateParams {
    const LoraPiece *pieces;
    float *h;
    uint32_t site;
    uint32_t num_rows;
    uint32_t h_width;
    uint32_t num_splits;
};

constexpr uint32_t kThreads = 256;
constexpr uint32_t kColumns = 4;  // of a thread, a block's width apart

// A block is (columns, piece).
template <typename T> __device__ __forceinline__ void narrow(const NarrowParams &p) {
    const LoraPiece piece = p.pieces[blockIdx.y];
    if (piece.num_rows == 0 || piece.sites[p.site].rank == 0) return;
    for (uint32_t t = 0; t < piece.num_rows; ++t) {
        const size_t row = size_t{piece.first_row + t} * p.width;
#pragma unroll
        for (uint32_t i = 0; i < kColumns; ++i) {
            const uint32_t column = (blockIdx.x * kColumns + i) * kThreads + threadIdx.x;
            if (column < p.width) static_cast<T *>(p.x)[row + column] = from_f32<T>(p.y[row + column]);
        }
    }
}

__device__ __forceinline__ float activated(Activation activation, float x) {
    switch (activation) {
        case Activation::kRelu: return x < 0.0f ? 0.0f : x;  // a NaN stays one
        case Activation::kGelu: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
        case Activation::kGeluTanh:
            return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
        case Activation::kSilu: return x / (1.0f + expf(-x));
        case Activation::kTanh: return tanhf(x);
        case Activation::kIdentity: return x;
    }
    return x;
}

WEFT_KERNEL(bottleneck_narrow_f16, NarrowParams, kThreads) { narrow<f16>(p); }
WEFT_KERNEL(bottleneck_narrow_bf16, NarrowParams, kThreads) { narrow<bf16>(p); }

// A block is a piece.
WEFT_KERNEL(bottleneck_activate, ActivateParams, kThreads) {
    const LoraPiece piece = p.pieces[blockIdx.x];
    if (piece.num_rows == 0) return;
    const LoraSite &site = piece.sites[p.site];
    for (uint32_t i = threadIdx.x; i < piece.num_rows * site.rank; i += kThreads) {
        const uint32_t t = i / site.rank, j = i % site.rank;
        float *h = p.h + size_t{piece.first_row + t} * p.h_width + j;
        float sum = 0.0f;
        for (uint32_t split = 0; split < p.num_splits; ++split) {
            sum += h[size_t{split} * p.num_rows * p.h_width];
        }
        const float scale = site.h_scales == nullptr ? 1.0f : site.h_scales[j];
        *h = activated(site.activation, sum + site.h_bias[j]) * scale;
    }
}
