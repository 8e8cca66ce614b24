// What the two kernels of sampling share. In: logits [R, vocab] f32, a struct and lists for each row.
//
//   sample_scan   (slices of 4096 logits) x (rows): everything that reads a whole row once. Raw: finite?
//                 log sum exp, the most likely. Then bias, penalties, bans and mask, in place. Then: max,
//                 arg max, mass.
//   sample_draw   one block a row: top-k, top-p, min-p, and the token at u of the remaining mass.
//
// Mass is exp((x - max) / temperature). Where order matters it is counted in integers, in units of
// 2^-44 of the largest: integers add in any order, so sums over histograms filled by atomics are exact
// and always the same. A token lighter than a unit (one in 10^13) is never drawn.
#pragma once

#include "../common/cuda.cuh"

constexpr uint32_t kSlice = 4096;     // logits of a row that one block of sample_scan reads
constexpr uint32_t kMaxSlices = 64;   // so a vocabulary has up to 262144 tokens
constexpr uint32_t kMaxTop = 20;      // most likely tokens that can be asked for
constexpr uint32_t kNone = 0xffffffffu;

constexpr uint32_t kActive = 1;        // else padding
constexpr uint32_t kGreedy = 2;        // the arg max
constexpr uint32_t kTruncated = 4;     // top-k, top-p or min-p: the token is found in sorted order
constexpr uint32_t kWantsLogprobs = 8;

constexpr uint32_t kDrawn = 0;
constexpr uint32_t kNotFinite = 1;     // raw logits hold a NaN or an infinity
constexpr uint32_t kNothingAllowed = 2;

// Lists lie in `lists` one after another from `lists_begin` on:
//   (token, bias as f32) x num_biases, (token, count in the output) x num_penalties, (token) x num_banned
// No token is twice in the first or in the second.
struct SamplingRow {
    double u;                // in [0, 1)
    float inv_temperature;
    float top_p;             // 1 or more: off
    float min_p_distance;    // temperature * ln(min_p): how far below the max a logit may lie
    float repetition, presence, frequency;
    uint32_t top_k;          // 0: off
    uint32_t flags;
    uint32_t num_top;
    uint32_t mask_begin;     // in `lists`: a bit for each token, set if allowed; or kNone
    uint32_t lists_begin;
    uint32_t num_biases, num_penalties, num_banned;
};

// What a slice says about itself.
struct SlicePartial {
    double raw_sum;          // of exp(x - raw_max)
    double mass;             // of exp((x - max) / temperature), after penalties
    float raw_max;
    float max;
    uint32_t arg_max;        // the first of the largest
    uint32_t finite;
};

struct DrawnRow {
    uint32_t token;
    uint32_t status;
    float logprob;           // ln p of the token, from raw logits; 0 if not asked for
    uint32_t num_top;
};

struct TopToken {
    uint32_t token;
    float logprob;
};

struct SamplingParams {
    float *logits;
    const SamplingRow *rows;
    const uint32_t *lists;
    float *raw;              // by position in `lists`: what a listed token's logit was
    SlicePartial *partials;  // [R, num_slices]
    uint64_t *slice_tops;    // [R, num_slices, kMaxTop], see ranked()
    DrawnRow *drawn;         // [R]
    TopToken *tops;          // [R, kMaxTop]
    uint32_t vocab;
    uint32_t stride;         // logits from row to row
    uint32_t num_slices;
    uint32_t pad;
};

// Larger for larger logits; -0 comes before +0.
__device__ __forceinline__ uint32_t ordered_key(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float logit_of_key(uint32_t key) {
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// A logit and its token as one number: larger comes first, by logit, then by lower id. Never 0.
__device__ __forceinline__ uint64_t ranked(float x, uint32_t token) {
    return uint64_t{ordered_key(x)} << 32 | (kNone - token);
}

__device__ __forceinline__ uint64_t warp_max_u64(uint64_t x) {
#pragma unroll
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
        const uint64_t other = __shfl_xor_sync(kFullWarp, x, lanes);
        x = other > x ? other : x;
    }
    return x;
}
__device__ __forceinline__ double warp_sum_f64(double x) {
#pragma unroll
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kFullWarp, x, lanes);
    return x;
}

struct Best {
    float x;
    uint32_t token;
};
// The larger; of equals (-0 and +0 are) the first.
__device__ __forceinline__ Best better(Best a, Best b) {
    return b.x > a.x || (b.x == a.x && b.token < a.token) ? b : a;
}
__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
    for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
        best = better(best, Best{__shfl_xor_sync(kFullWarp, best.x, lanes),
                                 __shfl_xor_sync(kFullWarp, best.token, lanes)});
    }
    return best;
}

// Four logits from `i` on, `fill` beyond the vocabulary. `aligned`: rows begin at 16 bytes.
__device__ __forceinline__ float4 load_logits(const float *row, uint32_t i, uint32_t vocab, bool aligned,
                                              float fill) {
    if (aligned && i + 4 <= vocab) return *reinterpret_cast<const float4 *>(row + i);
    return make_float4(i < vocab ? row[i] : fill, i + 1 < vocab ? row[i + 1] : fill,
                       i + 2 < vocab ? row[i + 2] : fill, i + 3 < vocab ? row[i + 3] : fill);
}
