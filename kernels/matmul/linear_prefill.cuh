// out[t,n] (+)= sum_k x[t,k] W[n,k] + bias[n]    x:[T,K] T  W:[N,K] packed  bias:[N] f32  out:[T,N] T or f32
//
// For many rows. A block takes 128 outputs and 128 rows, a warp 32 outputs and 64 rows of them. x comes
// through a ring in shared memory, weights straight into registers, a step ahead, where they are
// dequantized: once for 64 rows. Blocks of the same outputs are neighbours, so that weights are read
// from memory once and from the cache by all other rows.
#pragma once

#include "weights.cuh"

constexpr int kPrefillThreads = 256;
constexpr int kBlockRows = 128;
constexpr int kBlockTiles = 8;
constexpr int kWarpTiles = 2;
constexpr int kWarpColumns = 8;
// Columns whose products alternate.
constexpr int kTogether = 2;
constexpr int kOutputWarps = kBlockTiles / kWarpTiles;
constexpr int kStages = 3;
constexpr int kStageBytes = kBlockRows * kStep * 2;
// Floats between rows of the results that a warp puts in order: no two lanes meet in a bank.
constexpr int kResultStride = kWarpTiles * kTile + 4;

// Where eight inputs of a row lie in a stage. A quarter of a warp reads 64 bytes of two rows: the
// halves of odd rows are swapped, so that these are not the same banks.
__device__ __forceinline__ uint32_t stage_offset(uint32_t row, uint32_t chunk) {
    return row * (kStep * 2) + (chunk ^ (row % 2 * 4)) * 16;
}

template <typename T, bool kAlwaysAligned>
__device__ __forceinline__ void fill_stage(unsigned char *stage, const LinearParams &p, uint32_t first_row,
                                           uint32_t step) {
#pragma unroll
    for (int i = 0; i < kBlockRows * 8 / kPrefillThreads; ++i) {
        const uint32_t at = threadIdx.x + i * kPrefillThreads;
        const uint32_t row = at / 8, chunk = at % 8, input = step * kStep + chunk * 8;
        unsigned char *to = stage + stage_offset(row, chunk);
        if (kAlwaysAligned || p.x_is_aligned != 0) {
            const bool valid = first_row + row < p.num_rows && input < p.num_inputs;
            const T *x = static_cast<const T *>(p.x);
            if (valid) x += static_cast<size_t>(first_row + row) * p.num_inputs + input;
            cp_async_16(to, x, valid);
        } else {
            *reinterpret_cast<uint4 *>(to) = gather_x8<T>(p, first_row + row, input);
        }
    }
}

// Eight neighbouring outputs of a row.
template <typename T>
__device__ __forceinline__ void store_outputs(const LinearPart &part, uint32_t row, uint32_t output,
                                              const float *values) {
    if ((part.flags & kOutVectors) == 0 || output + 8 > part.num_outputs) {
        for (uint32_t i = 0; i < 8 && output + i < part.num_outputs; ++i) {
            store_output<T>(part, row, output + i, values[i]);
        }
        return;
    }
    const size_t at = static_cast<size_t>(row) * part.num_outputs + output;
    float sums[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        sums[i] = values[i] + (part.bias != nullptr ? __ldg(part.bias + output + i) : 0.0f);
    }
    if ((part.flags & kOutF32) == 0) {
        Vec8<T> result;
#pragma unroll
        for (int i = 0; i < 8; ++i) result.x[i] = from_f32<T>(sums[i]);
        store8(static_cast<T *>(part.out) + at, result);
        return;
    }
    float4 *out = reinterpret_cast<float4 *>(static_cast<float *>(part.out) + at);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const float *s = sums + 4 * i;
        float4 before = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if ((part.flags & kAccumulate) != 0) before = out[i];
        out[i] = make_float4(before.x + s[0], before.y + s[1], before.z + s[2], before.w + s[3]);
    }
}

template <typename T, Format kFormat> __device__ __forceinline__ void linear_prefill(const LinearParams &p) {
    constexpr bool kAligned = kFormat != Format::kDense;
    const LinearPart &part = part_of(p, blockIdx.y);
    unsigned char *stages = dynamic_shared();
    unsigned char *table = stages + kStages * kStageBytes;
    const uint32_t g = lane_index() / 4, t = lane_index() % 4;
    const uint32_t first_row = blockIdx.x * kBlockRows;
    const uint32_t first_tile =
        (blockIdx.y - part.first_block) * kBlockTiles + warp_index() % kOutputWarps * kWarpTiles;
    const uint32_t warp_row = warp_index() / kOutputWarps * kWarpColumns * 8;
    // Such warps only help to load.
    const bool is_idle = first_row + warp_row >= p.num_rows || first_tile >= part.num_tiles;
    // A tile beyond the last is the last once more, and not written.
    const auto tile = [&](int i) { return min(first_tile + i, part.num_tiles - 1); };

#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
        if (i < static_cast<int>(p.num_steps)) {
            fill_stage<T, kAligned>(stages + i * kStageBytes, p, first_row, i);
        }
        cp_async_commit();
    }
    PackedStep<kFormat> packed[kWarpTiles];
#pragma unroll
    for (int i = 0; i < kWarpTiles; ++i) load_step<kFormat, false>(packed[i], part, tile(i), 0, p.num_steps);
    if constexpr (kFormat == Format::kCodebook) {
        fill_pair_table<T>(reinterpret_cast<uint4 *>(table), part.codebook);
    }

    float sums[kWarpTiles][kWarpColumns][4] = {};
    for (uint32_t step = 0; step < p.num_steps; ++step) {
        cp_async_wait<kStages - 2>();
        // What others copied is there, and nobody reads the stage before this any more.
        __syncthreads();
        const uint32_t ahead = step + kStages - 1;
        if (ahead < p.num_steps) {
            fill_stage<T, kAligned>(stages + ahead % kStages * kStageBytes, p, first_row, ahead);
        }
        cp_async_commit();
        if (is_idle) continue;
        Fragments<kFormat> w[kWarpTiles];
#pragma unroll
        for (int i = 0; i < kWarpTiles; ++i) {
            dequantize<T, kFormat>(w[i], packed[i], part, reinterpret_cast<const uint32_t *>(table));
            if (step + 1 < p.num_steps) {
                load_step<kFormat, false>(packed[i], part, tile(i), step + 1, p.num_steps);
            }
        }
        const unsigned char *stage = stages + step % kStages * kStageBytes;
#pragma unroll
        for (int first = 0; first < kWarpColumns; first += kTogether) {
            uint4 x[kTogether][2];
#pragma unroll
            for (int c = 0; c < kTogether * 2; ++c) {
                const uint32_t row = warp_row + (first + c / 2) * 8 + g;
                x[c / 2][c % 2] = *reinterpret_cast<const uint4 *>(stage + stage_offset(row, c % 2 * 4 + t));
            }
            const auto of = [&](int i, int c) -> float (&)[4] { return sums[i][first + c]; };
            multiply<T, kFormat>(of, w, x);
        }
    }

    cp_async_wait<0>();
    __syncthreads();
    if (is_idle) return;
    // Eight rows at a time are put in order, so that a lane writes eight neighbours.
    float *results = reinterpret_cast<float *>(stages) + warp_index() * (8 * kResultStride);
#pragma unroll
    for (int c = 0; c < kWarpColumns; ++c) {
#pragma unroll
        for (int i = 0; i < kWarpTiles; ++i) {
#pragma unroll
            for (int r = 0; r < 4; ++r) {
                results[(2 * t + r % 2) * kResultStride + i * kTile + g + r / 2 * 8] = sums[i][c][r];
            }
        }
        __syncwarp();
        const uint32_t row = first_row + warp_row + c * 8 + g;
        if (row < p.num_rows) {
            store_outputs<T>(part, row, first_tile * kTile + 8 * t, results + g * kResultStride + 8 * t);
        }
        __syncwarp();
    }
}

#define WEFT_LINEAR_PREFILL(name, T, format)                                                       \
    WEFT_KERNEL(linear_prefill_##name, LinearParams, kPrefillThreads) { linear_prefill<T, format>(p); }
