// y_p[t,:] += sum_j scales[j] * (x[t,:] . A_p[j,:]) * B_p[j,:]    x:[T,K]  A:[rank,K]  B:[rank,N]  y:[T,N]
//
// Decode: pieces of at most eight rows of one adapter, each matrix row read once for all of them. Two
// kernels: shrink (h = scales * x A^T, in f32) and expand (y += h B). Up to three targets p share x.
// Bound: bytes of distinct adapters / bandwidth. A row's sums have the same order in any piece.
#include "lora.cuh"

struct BgmvShrinkParams {
    const LoraPiece *pieces;
    const void *x;
    float *h;  // [targets, T, h_width]
    uint32_t sites[kMaxTargets];
    uint32_t num_inputs;
    uint32_t num_rows;
    uint32_t h_width;
};

struct BgmvExpandParams {
    const LoraPiece *pieces;
    const float *h;
    void *out[kMaxTargets];
    uint32_t sites[kMaxTargets];
    uint32_t num_outputs[kMaxTargets];
    uint32_t num_rows;
    uint32_t h_width;
};

constexpr int kMaxRows = 8;
constexpr int kShrinkThreads = 256;
constexpr int kShrinkWarps = kShrinkThreads / kWarpSize;
// Rows of A that a block reads at once: enough loads in flight, and a row of x serves four.
constexpr int kRanks = 4;
constexpr int kExpandThreads = 128;
// Rows of B between two barriers.
constexpr uint32_t kRankChunk = 64;

// Sums of a warp.
struct Partial {
    float of[kShrinkWarps][kMaxRows * kRanks];
};
// Part of a piece's h, times the scales: [rank][row].
struct ScaledH {
    float of[kRankChunk * kMaxRows];
};

// The sum of each of kNum values over the warp: lane l has that of value l / (32 / kNum). The tree of
// a value's additions is the same for all kNum.
template <int kNum, int kLanes = kWarpSize / 2>
__device__ __forceinline__ float warp_sums(const float (&value)[kNum]) {
    if constexpr (kLanes == 0) {
        return value[0];
    } else if constexpr (kNum == 1) {
        const float sum[1] = {value[0] + __shfl_xor_sync(kFullWarp, value[0], kLanes)};
        return warp_sums<1, kLanes / 2>(sum);
    } else {
        const bool upper = (lane_index() & kLanes) != 0;
        float sums[kNum / 2];
#pragma unroll
        for (int i = 0; i < kNum / 2; ++i) {
            const float kept = upper ? value[i + kNum / 2] : value[i];
            const float given = upper ? value[i] : value[i + kNum / 2];
            sums[i] = kept + __shfl_xor_sync(kFullWarp, given, kLanes);
        }
        return warp_sums<kNum / 2, kLanes / 2>(sums);
    }
}

// Widths that are no multiples of eight are right, not fast: row by row.
__device__ __forceinline__ LoraPiece row_of_piece(const LoraPiece &piece, uint32_t t) {
    return {piece.sites, piece.first_row + t, 1};
}

// h[t, first .. first + kRanks] of a piece of up to kRows rows.
template <typename T, typename W, int kRows, bool kAligned>
__device__ __forceinline__ void shrink_ranks(const BgmvShrinkParams &p, const LoraPiece &piece,
                                             const LoraSite &site, uint32_t first, Partial &partial) {
    constexpr int kNum = kRows * kRanks;
    const uint32_t width = p.num_inputs;
    // Rows that are not there are the last once more, and are not written.
    const W *a[kRanks];
#pragma unroll
    for (uint32_t r = 0; r < kRanks; ++r) a[r] = row_of<W>(site.a, min(first + r, site.rank - 1), width);
    const T *x = static_cast<const T *>(p.x) + size_t{piece.first_row} * width;
    float sums[kNum] = {};
    const uint32_t num_chunks = (width + 7) / 8;
#pragma unroll(kRows == 1 ? 2 : 1)
    for (uint32_t chunk = threadIdx.x; chunk < num_chunks; chunk += kShrinkThreads) {
        Raw8<W> raw[kRanks];
#pragma unroll
        for (int r = 0; r < kRanks; ++r) raw[r] = load_raw8<kAligned>(a[r], chunk * 8, width);
        Raw8<T> inputs[kRows];
#pragma unroll
        for (uint32_t t = 0; t < kRows; ++t) {
            const T *row = x + min(t, piece.num_rows - 1) * width;
            inputs[t] = load_raw8<kAligned>(row, chunk * 8, width);
        }
        float w[kRanks][8];
#pragma unroll
        for (int r = 0; r < kRanks; ++r) unpack8(raw[r], w[r]);
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
            float values[8];
            unpack8(inputs[t], values);
#pragma unroll
            for (int r = 0; r < kRanks; ++r) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    sums[t * kRanks + r] = fmaf(values[i], w[r][i], sums[t * kRanks + r]);
                }
            }
        }
    }
    const float sum = warp_sums(sums);
    constexpr int kLanes = kWarpSize / kNum;
    if (lane_index() % kLanes == 0) partial.of[warp_index()][lane_index() / kLanes] = sum;
    __syncthreads();
    if (threadIdx.x < kNum) {
        const uint32_t t = threadIdx.x / kRanks, j = first + threadIdx.x % kRanks;
        float total = 0.0f;
#pragma unroll
        for (int warp = 0; warp < kShrinkWarps; ++warp) total += partial.of[warp][threadIdx.x];
        if (t < piece.num_rows && j < site.rank) {
            const size_t row = size_t{blockIdx.z} * p.num_rows + piece.first_row + t;
            p.h[row * p.h_width + j] = total * scale_of(site, j);
        }
    }
    __syncthreads();
}

template <typename T> __device__ __forceinline__ void bgmv_shrink(const BgmvShrinkParams &p) {
    __shared__ Partial shared;
    Partial &partial = shared;
    const LoraPiece piece = p.pieces[blockIdx.x];
    if (piece.num_rows == 0) return;
    const LoraSite &site = piece.sites[p.sites[blockIdx.z]];
    if (blockIdx.y * kRanks >= site.rank) return;
    with_dtype(site.a_dtype, [&](auto of) {
        using W = typename decltype(of)::type;
        for (uint32_t first = blockIdx.y * kRanks; first < site.rank; first += gridDim.y * kRanks) {
            if (p.num_inputs % 8 != 0) {
                for (uint32_t t = 0; t < piece.num_rows; ++t) {
                    shrink_ranks<T, W, 1, false>(p, row_of_piece(piece, t), site, first, partial);
                }
            } else if (piece.num_rows == 1) {
                shrink_ranks<T, W, 1, true>(p, piece, site, first, partial);
            } else if (piece.num_rows <= 4) {
                shrink_ranks<T, W, 4, true>(p, piece, site, first, partial);
            } else {
                shrink_ranks<T, W, 8, true>(p, piece, site, first, partial);
            }
        }
    });
}

// y[t, n .. n + 8] of a piece of up to kRows rows: a thread has eight columns.
template <typename Out, typename W, int kRows, bool kAligned>
__device__ __forceinline__ void expand_piece(const BgmvExpandParams &p, const LoraPiece &piece,
                                             const LoraSite &site, ScaledH &scaled) {
    // Rows of B that are read ahead.
    constexpr uint32_t kGroup = (kRows == 1 ? 8 : kRows == 4 ? 4 : 2) / (sizeof(W) <= 2 ? 1 : 2);
    const uint32_t width = p.num_outputs[blockIdx.z];
    const uint32_t column = (blockIdx.x * kExpandThreads + threadIdx.x) * 8;
    const bool active = column < width;
    const float *h = p.h + (size_t{blockIdx.z} * p.num_rows + piece.first_row) * p.h_width;
    float sums[kRows][8] = {};
    uint32_t num = 0;
    for (uint32_t first = 0; first < site.rank; first += num) {
        const LoraRows rows = rows_from(site.b, first, width * sizeof(W));
        num = min(min(rows.num_rows, kRankChunk), site.rank - first);
        const W *b = reinterpret_cast<const W *>(rows.first);
        Raw8<W> next[kGroup];
        const auto read_ahead = [&](uint32_t from) {
#pragma unroll
            for (uint32_t i = 0; i < kGroup; ++i) {
                const size_t row = min(from + i, num - 1);
                if (active) next[i] = load_raw8<kAligned>(b + row * width, column, width);
            }
        };
        read_ahead(0);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < kRankChunk * kRows; i += kExpandThreads) {
            const uint32_t t = i / kRankChunk, j = i % kRankChunk;
            if (j < num) {
                scaled.of[j * kRows + t] = t < piece.num_rows ? h[size_t{t} * p.h_width + first + j] : 0.0f;
            }
        }
        __syncthreads();
        if (!active) continue;
        for (uint32_t group = 0; group < num; group += kGroup) {
            Raw8<W> now[kGroup];
#pragma unroll
            for (uint32_t i = 0; i < kGroup; ++i) now[i] = next[i];
            if (group + kGroup < num) read_ahead(group + kGroup);
#pragma unroll
            for (uint32_t i = 0; i < kGroup; ++i) {
                if (group + i >= num) break;
                float w[8];
                unpack8(now[i], w);
#pragma unroll
                for (int t = 0; t < kRows; ++t) {
                    const float factor = scaled.of[(group + i) * kRows + t];
#pragma unroll
                    for (int n = 0; n < 8; ++n) sums[t][n] = fmaf(factor, w[n], sums[t][n]);
                }
            }
        }
    }
    if (!active) return;
#pragma unroll
    for (uint32_t t = 0; t < kRows; ++t) {
        if (t >= piece.num_rows) break;
        Out *out = static_cast<Out *>(p.out[blockIdx.z]) + size_t{piece.first_row + t} * width;
        add8<kAligned>(out, column, width, sums[t]);
    }
}

template <typename Out> __device__ __forceinline__ void bgmv_expand(const BgmvExpandParams &p) {
    __shared__ ScaledH shared;
    ScaledH &scaled = shared;
    const LoraPiece piece = p.pieces[blockIdx.y];
    const uint32_t width = p.num_outputs[blockIdx.z];
    if (piece.num_rows == 0 || blockIdx.x * kExpandThreads * 8 >= width) return;
    const LoraSite &site = piece.sites[p.sites[blockIdx.z]];
    if (site.rank == 0) return;
    with_dtype(site.b_dtype, [&](auto of) {
        using W = typename decltype(of)::type;
        if (width % 8 != 0) {
            for (uint32_t t = 0; t < piece.num_rows; ++t) {
                expand_piece<Out, W, 1, false>(p, row_of_piece(piece, t), site, scaled);
            }
        } else if (piece.num_rows == 1) {
            expand_piece<Out, W, 1, true>(p, piece, site, scaled);
        } else if (piece.num_rows <= 4) {
            expand_piece<Out, W, 4, true>(p, piece, site, scaled);
        } else {
            expand_piece<Out, W, 8, true>(p, piece, site, scaled);
        }
    });
}

WEFT_KERNEL_BLOCKS(bgmv_shrink_f16, BgmvShrinkParams, kShrinkThreads, 2) { bgmv_shrink<f16>(p); }
WEFT_KERNEL_BLOCKS(bgmv_shrink_bf16, BgmvShrinkParams, kShrinkThreads, 2) { bgmv_shrink<bf16>(p); }
WEFT_KERNEL_BLOCKS(bgmv_expand_f16, BgmvExpandParams, kExpandThreads, 4) { bgmv_expand<f16>(p); }
WEFT_KERNEL_BLOCKS(bgmv_expand_bf16, BgmvExpandParams, kExpandThreads, 4) { bgmv_expand<bf16>(p); }
WEFT_KERNEL_BLOCKS(bgmv_expand_f32, BgmvExpandParams, kExpandThreads, 4) { bgmv_expand<float>(p); }
