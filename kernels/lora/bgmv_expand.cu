// y_p[t,n] += sum_j h_p[t,j] * B_p[j,n]    h:[targets,T,h_width] f32  B:[rank,N]  y:[T,N] T or f32
//
// Decode, second half: pieces of at most eight rows of one adapter; a row of B is read once for all of
// them. A thread has eight columns, and nobody else adds to them.
// Bound: bytes of B of distinct adapters / bandwidth.
#include "lora.cuh"

struct BgmvExpandParams {
    const LoraPiece *pieces;
    const float *h;
    void *out[kMaxTargets];
    uint32_t sites[kMaxTargets];
    uint32_t num_outputs[kMaxTargets];
    uint32_t num_rows;
    uint32_t h_width;
    Dtype out_dtype;
    uint32_t pad;
};

constexpr int kMaxRows = 8;
constexpr int kThreads = 128;
// Rows of B between two barriers.
constexpr uint32_t kRankChunk = 64;

// Part of a piece's h: [rank][row].
struct ScaledH {
    float of[kRankChunk * kMaxRows];
};

// Widths that are no multiples of eight are right, not fast: row by row.
__device__ __forceinline__ LoraPiece row_of_piece(const LoraPiece &piece, uint32_t t) {
    return {piece.sites, piece.first_row + t, 1};
}

// y[t, n .. n + 8] of a piece of up to kRows rows: a thread has eight columns.
template <typename W, int kRows, bool kAligned>
__device__ __forceinline__ void expand_piece(const BgmvExpandParams &p, const LoraPiece &piece,
                                             const LoraSite &site, ScaledH &scaled) {
    // Rows of B that are read ahead.
    constexpr uint32_t kWanted = (kRows == 1 ? 8 : kRows == 4 ? 4 : 2) / (sizeof(W) <= 2 ? 1 : 2);
    constexpr uint32_t kGroup = kAligned ? kWanted : 1;
    const uint32_t width = p.num_outputs[blockIdx.z];
    const uint32_t column = (blockIdx.x * kThreads + threadIdx.x) * 8;
    const bool active = column < width;
    // Threads beyond the end read the first columns, and write nothing.
    const uint32_t read_column = active ? column : 0;
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
                next[i] = load_raw8<kAligned>(b + row * width, read_column, width);
            }
        };
        read_ahead(0);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < kRankChunk * kRows; i += kThreads) {
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
        add8<kAligned>(p.out_dtype, p.out[blockIdx.z], piece.first_row + t, column, width, sums[t]);
    }
}

WEFT_KERNEL_BLOCKS(bgmv_expand, BgmvExpandParams, kThreads, 3) {
    __shared__ ScaledH shared;
    ScaledH &scaled = shared;
    const LoraPiece piece = p.pieces[blockIdx.y];
    const uint32_t width = p.num_outputs[blockIdx.z];
    if (piece.num_rows == 0 || blockIdx.x * kThreads * 8 >= width) return;
    const LoraSite &site = piece.sites[p.sites[blockIdx.z]];
    if (site.rank == 0) return;
    with_dtype(site.b_dtype, [&](auto of) {
        using W = typename decltype(of)::type;
        if (width % 8 != 0) {
            for (uint32_t t = 0; t < piece.num_rows; ++t) {
                expand_piece<W, 1, false>(p, row_of_piece(piece, t), site, scaled);
            }
        } else if (piece.num_rows == 1) {
            expand_piece<W, 1, true>(p, piece, site, scaled);
        } else if (piece.num_rows <= 4) {
            expand_piece<W, 4, true>(p, piece, site, scaled);
        } else {
            expand_piece<W, 8, true>(p, piece, site, scaled);
        }
    });
}
