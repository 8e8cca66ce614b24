// h_p[t,j] = scales[j] * (x[t,:] . A_p[j,:])    x:[T,K] T  A:[rank,K]  h:[targets,T,h_width] f32
//
// Decode, first half: pieces of at most eight rows of one adapter; a row of A is read once for all of
// them. Up to three targets p share x. A row's sums have the same order in any piece.
// Bound: bytes of A of distinct adapters / bandwidth.
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

constexpr int kMaxRows = 8;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
// Rows of A that a block reads at once: enough loads in flight, and a row of x serves four.
constexpr int kRanks = 4;

// Sums of the block's warps.
struct Partial {
    float of[kWarps][kMaxRows * kRanks];
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
    for (uint32_t chunk = threadIdx.x; chunk < num_chunks; chunk += kThreads) {
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
        for (int warp = 0; warp < kWarps; ++warp) total += partial.of[warp][threadIdx.x];
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

WEFT_KERNEL_BLOCKS(bgmv_shrink_f16, BgmvShrinkParams, kThreads, 2) { bgmv_shrink<f16>(p); }
WEFT_KERNEL_BLOCKS(bgmv_shrink_bf16, BgmvShrinkParams, kThreads, 2) { bgmv_shrink<bf16>(p); }
