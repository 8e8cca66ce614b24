// out[t,n] (+)= sum_k x[t,k] W[n,k] + bias[n]    x:[T,K] T  W:[N,K] packed  bias:[N] f32  out:[T,N] T or f32
//
// For few rows: T up to 64. A block takes kTiles tiles of sixteen outputs and all rows; its warps take
// turns at the steps of K and their sums are added up in shared memory, always in the same order. So
// each weight is read once, by whole warps at 512 neighbouring bytes, several loads ahead of its use.
// Weights are the A of the tensor cores: eight rows of x fill a B, none is padded to sixteen.
#pragma once

#include "weights.cuh"

// Of few rows, whose sums leave room for it; else half as many.
constexpr int kDecodeThreads = 512;
// Floats between rows of sums in shared memory: no two lanes of a store meet in a bank.
constexpr int kSumStride = kTile + 4;

// Steps that a warp loads ahead: about 20 KiB of a block are under way.
template <Format kFormat, int kColumns, int kTiles>
constexpr int kDepth =
    (kFormat == Format::kDense || kFormat == Format::kW8 ? 1 : 2) * (kColumns < 4 ? 2 : 4) / kTiles;

// A warp multiplies kTiles tiles with kColumns times eight rows; kRowParts warps share a step.
template <typename T, Format kFormat, int kTiles, int kColumns, int kRowParts>
__device__ __forceinline__ void linear_decode(const LinearParams &p) {
    constexpr int kAhead = kDepth<kFormat, kColumns, kTiles>;
    constexpr bool kOnce = kRowParts == 1;
    constexpr uint32_t kRows = kRowParts * kColumns * 8;
    // Tiles whose products alternate, where columns alone are too few to.
    constexpr int kTogether = kColumns < 4 ? kTiles : 1;
    const LinearPart &part = part_of(p, blockIdx.x);
    const uint32_t first_tile = (blockIdx.x - part.first_block) * kTiles;
    const uint32_t g = lane_index() / 4, t = lane_index() % 4;
    const uint32_t first_row = warp_index() % kRowParts * kColumns * 8;
    const uint32_t k_part = warp_index() / kRowParts, num_k_parts = blockDim.x / kWarpSize / kRowParts;
    // Tiles beyond the last are the last once more, and not written.
    const auto tile = [&](int i) { return min(first_tile + i, part.num_tiles - 1); };

    PackedStep<kFormat> ring[kAhead][kTiles];
#pragma unroll
    for (int d = 0; d < kAhead; ++d) {
        const uint32_t step = k_part + d * num_k_parts;
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
            if (step < p.num_steps) {
                load_step<kFormat, kOnce>(ring[d][i], part, tile(i), step, p.num_steps);
            }
        }
    }
    const uint32_t *pair_table = reinterpret_cast<const uint32_t *>(dynamic_shared());
    if constexpr (kFormat == Format::kCodebook) {
        fill_pair_table<T>(reinterpret_cast<uint4 *>(dynamic_shared()), part.codebook);
        __syncthreads();
    }

    float sums[kTiles][kColumns][4] = {};
    for (uint32_t first = k_part; first < p.num_steps; first += kAhead * num_k_parts) {
#pragma unroll
        for (int d = 0; d < kAhead; ++d) {
            const uint32_t step = first + d * num_k_parts;
            if (step >= p.num_steps) break;
            const uint32_t input = step * kStep + 8 * t;
            uint4 x[kColumns][2];
            const bool is_aligned = kFormat != Format::kDense || p.x_is_aligned != 0;
            if (is_aligned) {
#pragma unroll
                for (int c = 0; c < kColumns * 2; ++c) {
                    x[c / 2][c % 2] = load_x8<T>(p, first_row + c / 2 * 8 + g, input + c % 2 * 32);
                }
            } else {
#pragma unroll
                for (int c = 0; c < kColumns * 2; ++c) {
                    x[c / 2][c % 2] = gather_x8<T>(p, first_row + c / 2 * 8 + g, input + c % 2 * 32);
                }
            }
            const uint32_t next = step + kAhead * num_k_parts;
#pragma unroll
            for (int first_i = 0; first_i < kTiles; first_i += kTogether) {
                Fragments<kFormat> w[kTogether];
#pragma unroll
                for (int i = 0; i < kTogether; ++i) {
                    PackedStep<kFormat> &packed = ring[d][first_i + i];
                    dequantize<T, kFormat>(w[i], packed, part, pair_table);
                    if (next < p.num_steps) {
                        load_step<kFormat, kOnce>(packed, part, tile(first_i + i), next, p.num_steps);
                    }
                }
                const auto of = [&](int i, int c) -> float (&)[4] { return sums[first_i + i][c]; };
                multiply<T, kFormat>(of, w, x);
            }
        }
    }

    // [k_part][row][output] of one tile at a time.
    float *scratch = reinterpret_cast<float *>(dynamic_shared());
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
        __syncthreads();  // the table, or the tile before, is no longer read
        float *own = scratch + (k_part * kRows + first_row) * kSumStride;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                own[(c * 8 + 2 * t + r % 2) * kSumStride + g + r / 2 * 8] = sums[i][c][r];
            }
        }
        __syncthreads();
        for (uint32_t at = threadIdx.x; at < kRows * kTile; at += blockDim.x) {
            const uint32_t row = at / kTile, output = (first_tile + i) * kTile + at % kTile;
            if (row >= p.num_rows || output >= part.num_outputs) continue;
            float sum = 0.0f;
            for (uint32_t k = 0; k < num_k_parts; ++k) {
                sum += scratch[(k * kRows + row) * kSumStride + at % kTile];
            }
            store_output<T>(part, row, output, sum);
        }
    }
}

#define WEFT_LINEAR_DECODE(name, T, format)                                                        \
    WEFT_KERNEL(linear_decode_##name##_rows8, LinearParams, kDecodeThreads) {                      \
        linear_decode<T, format, 2, 1, 1>(p);                                                      \
    }                                                                                              \
    WEFT_KERNEL(linear_decode_##name##_rows16, LinearParams, kDecodeThreads) {                     \
        linear_decode<T, format, 2, 2, 1>(p);                                                      \
    }                                                                                              \
    WEFT_KERNEL(linear_decode_##name##_rows32, LinearParams, kDecodeThreads / 2) {                     \
        linear_decode<T, format, 2, 4, 1>(p);                                                      \
    }                                                                                              \
    /* x is the larger part of what is read: more outputs share it. */                             \
    WEFT_KERNEL(linear_decode_##name##_rows64, LinearParams, kDecodeThreads / 2) {                     \
        linear_decode<T, format, 4, 4, 2>(p);                                                      \
    }
