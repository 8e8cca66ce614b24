// In: a slice of a row's logits, the row's lists. Out: the logits after bias, penalties, bans and mask,
// in place; a SlicePartial; the slice's most likely tokens by raw logits. See sampling.cuh.
//
//   x += bias;  seen in prompt or output: x = x > 0 ? x / repetition : x * repetition;
//   seen in the output: x -= presence + frequency * count;  banned or masked: x = -inf
//
// Sixteen logits of a thread stay in its registers. f32 within a thread, f64 between threads.
#include "sampling.cuh"

namespace {

constexpr uint32_t kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kVectors = kSlice / (kThreads * 4);
constexpr int kOwn = kVectors * 4;

struct Slice {
    float *row;
    uint32_t begin;
    uint32_t vocab;
    bool aligned;

    // The token of a thread's own logit.
    __device__ __forceinline__ uint32_t token(int own) const {
        return begin + (own / 4 * kThreads + threadIdx.x) * 4 + own % 4;
    }
    __device__ __forceinline__ bool holds(uint32_t token) const {
        return token - begin < kSlice && token < vocab;
    }
    __device__ __forceinline__ void load(float (&x)[kOwn]) const {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            const float4 four = load_logits(row, token(4 * v), vocab, aligned, -INFINITY);
            x[4 * v] = four.x;
            x[4 * v + 1] = four.y;
            x[4 * v + 2] = four.z;
            x[4 * v + 3] = four.w;
        }
    }
};

struct Scratch {
    Best best[kWarps];
    uint32_t finite[kWarps];
    double sums[kWarps];
    uint64_t tops[2][kWarps];
};

__device__ __forceinline__ Best block_best(const float (&x)[kOwn], const Slice &slice, Best *scratch) {
    Best best{-INFINITY, kNone};
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        if (x[i] > best.x) best = {x[i], slice.token(i)};
    }
    best = warp_best(best);
    if (lane_index() == 0) scratch[warp_index()] = best;
    __syncthreads();
    best = scratch[0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) best = better(best, scratch[warp]);
    return best;
}

// The sum of exp((x - max) * factor) over the block. -inf counts nothing.
__device__ __forceinline__ double block_mass(const float (&x)[kOwn], float max, float factor,
                                             double *scratch) {
    float own = 0.0f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) own += x[i] == -INFINITY ? 0.0f : expf((x[i] - max) * factor);
    const double sum = warp_sum_f64(own);
    if (lane_index() == 0) scratch[warp_index()] = sum;
    __syncthreads();
    double total = 0.0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) total += scratch[warp];
    return total;
}

// The slice's `num` first by ranked(), one a round: the largest below the last.
__device__ __forceinline__ void find_tops(const float (&x)[kOwn], const Slice &slice, uint32_t num,
                                          uint64_t *tops, Scratch &scratch) {
    uint64_t last = ~uint64_t{0};
    for (uint32_t round = 0; round < num; ++round) {
        uint64_t best = 0;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
            const uint64_t rank = slice.token(i) < slice.vocab ? ranked(x[i], slice.token(i)) : 0;
            if (rank < last && rank > best) best = rank;
        }
        best = warp_max_u64(best);
        uint64_t *const of_warps = scratch.tops[round % 2];
        if (lane_index() == 0) of_warps[warp_index()] = best;
        __syncthreads();
        best = of_warps[0];
#pragma unroll
        for (int warp = 1; warp < kWarps; ++warp) best = of_warps[warp] > best ? of_warps[warp] : best;
        if (threadIdx.x == 0) tops[round] = best;
        last = best;
    }
}

// Each step of a row's changes, for the tokens of this slice. One thread a list entry; a barrier between
// lists, because a token can be in several.
__device__ __forceinline__ void change(const SamplingParams &p, const SamplingRow &row,
                                       const Slice &slice) {
    float *const logits = slice.row;
    const uint32_t penalties = row.lists_begin + 2 * row.num_biases;
    const uint32_t banned = penalties + 2 * row.num_penalties;
    if ((row.flags & kWantsLogprobs) != 0) {
        for (uint32_t at = row.lists_begin + 2 * threadIdx.x; at < banned; at += 2 * kThreads) {
            const uint32_t token = p.lists[at];
            if (slice.holds(token)) p.raw[at] = logits[token];
        }
        __syncthreads();
    }
    for (uint32_t at = row.lists_begin + 2 * threadIdx.x; at < penalties; at += 2 * kThreads) {
        const uint32_t token = p.lists[at];
        if (slice.holds(token)) logits[token] += __uint_as_float(p.lists[at + 1]);
    }
    __syncthreads();
    for (uint32_t at = penalties + 2 * threadIdx.x; at < banned; at += 2 * kThreads) {
        const uint32_t token = p.lists[at];
        if (!slice.holds(token)) continue;
        const uint32_t count = p.lists[at + 1];
        float x = logits[token];
        // Each operation rounds, as on the CPU: not fused.
        if (row.repetition != 1.0f) x = x > 0.0f ? x / row.repetition : __fmul_rn(x, row.repetition);
        if (count != 0) {
            const float of_count = __fmul_rn(row.frequency, static_cast<float>(count));
            x = __fadd_rn(x, -__fadd_rn(row.presence, of_count));
        }
        logits[token] = x;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.num_banned; i += kThreads) {
        const uint32_t token = p.lists[banned + i];
        if (slice.holds(token)) logits[token] = -INFINITY;
    }
    __syncthreads();
}

// x = -inf where the mask has no bit, also in memory.
__device__ __forceinline__ void apply_mask(const uint32_t *mask, const Slice &slice, float (&x)[kOwn]) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const uint32_t token = slice.token(i);
        if (token >= slice.vocab || (mask[token / 32] >> (token % 32) & 1) != 0) continue;
        x[i] = -INFINITY;
        slice.row[token] = -INFINITY;
    }
}

}  // namespace

WEFT_KERNEL_BLOCKS(sample_scan, SamplingParams, kThreads, 3) {
    __shared__ Scratch scratch;
    const SamplingRow &row = p.rows[blockIdx.y];
    if ((row.flags & kActive) == 0) return;
    const Slice slice{p.logits + size_t{blockIdx.y} * p.stride, blockIdx.x * kSlice, p.vocab,
                      p.stride % 4 == 0};
    const size_t index = size_t{blockIdx.y} * p.num_slices + blockIdx.x;
    float x[kOwn];
    slice.load(x);

    bool finite = true;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const bool is_finite = (__float_as_uint(x[i]) & 0x7f800000u) != 0x7f800000u;
        finite = finite && (is_finite || slice.token(i) >= p.vocab);
    }
    finite = __all_sync(kFullWarp, finite);
    if (lane_index() == 0) scratch.finite[warp_index()] = finite;
    Best best = block_best(x, slice, scratch.best);
    SlicePartial partial{0.0, 0.0, best.x, best.x, best.token, 1};
    for (int warp = 0; warp < kWarps; ++warp) partial.finite &= scratch.finite[warp];
    if (partial.finite == 0) {
        if (threadIdx.x == 0) p.partials[index] = partial;
        return;
    }
    if ((row.flags & kWantsLogprobs) != 0) {
        partial.raw_sum = block_mass(x, best.x, 1.0f, scratch.sums);
        find_tops(x, slice, row.num_top, p.slice_tops + index * kMaxTop, scratch);
    }
    const bool listed = row.num_biases + row.num_penalties + row.num_banned != 0;
    if (listed || row.mask_begin != kNone) {
        // All have read before any writes: block_best has a barrier.
        if (listed) {
            change(p, row, slice);
            slice.load(x);
        }
        __syncthreads();
        if (row.mask_begin != kNone) apply_mask(p.lists + row.mask_begin, slice, x);
        best = block_best(x, slice, scratch.best);
        partial.max = best.x;
        partial.arg_max = best.token;
    }
    if ((row.flags & (kGreedy | kTruncated)) == 0 && best.token != kNone) {
        __syncthreads();
        partial.mass = block_mass(x, best.x, row.inv_temperature, scratch.sums);
    }
    if (threadIdx.x == 0) p.partials[index] = partial;
}
