// set_aside:  aside[t,:] = y[t,:], y[t,:] = 0        y, aside:[T,N] f32
// put_back:   y[t,:] += aside[t,:]
//
// For rows whose adapter changes the output of this linear before it joins the residual stream y: what
// the stream was waits aside meanwhile, and the linear adds to zeros. Other rows are not touched, so
// that their sums are those of any batch. A block is (columns, piece).
// Bound: bytes of both, each read and written / bandwidth.
#include "lora.cuh"

struct AsideParams {
    const LoraPiece *pieces;
    float *y;
    float *aside;
    uint32_t site;
    uint32_t bottleneck;  // its record
    uint32_t width;
    uint32_t pad;
};

constexpr uint32_t kThreads = 256;
constexpr uint32_t kColumns = 4;  // of a thread, a block's width apart

// Calls f(index) for the numbers of the piece's rows in this thread's columns.
template <typename F> __device__ __forceinline__ void each_number(const AsideParams &p, F f) {
    const LoraPiece piece = p.pieces[blockIdx.y];
    if (piece.num_rows == 0) return;
    const LoraSite &site = piece.sites[p.site];
    const bool is_changed =
        site.gain_out != nullptr || site.shift != nullptr || piece.sites[p.bottleneck].rank != 0;
    if (!is_changed) return;
    for (uint32_t t = 0; t < piece.num_rows; ++t) {
        const size_t row = size_t{piece.first_row + t} * p.width;
#pragma unroll
        for (uint32_t i = 0; i < kColumns; ++i) {
            const uint32_t column = (blockIdx.x * kColumns + i) * kThreads + threadIdx.x;
            if (column < p.width) f(row + column);
        }
    }
}

WEFT_KERNEL(set_aside, AsideParams, kThreads) {
    each_number(p, [&](size_t index) {
        p.aside[index] = p.y[index];
        p.y[index] = 0.0f;
    });
}

WEFT_KERNEL(put_back, AsideParams, kThreads) {
    each_number(p, [&](size_t index) { p.y[index] += p.aside[index]; });
}
