// (x[i], x[i + R/2]) *= e^{i p θ_i} for i < R/2, of each head of q and k, in place, p the row's position;
// then k and v go to their token's place in the paged KV cache.
//
// q:[T, heads, D] k:[T, kv heads, D] v:[T, kv heads, D] of T, rotations:[positions, R/2] of (cos, sin)
// f32. Row t is token offsets[t] of block blocks[t]; a row with no block is padding, left as it is.
// A block of threads is a row, a thread rotates eight pairs at a time, or one where R/2 is odd.
#include "kv.cuh"

struct RopeStoreParams {
    PagedKv kv;
    void *q;
    void *k;
    const void *v;
    const float2 *rotations;
    const uint32_t *positions;
    const uint32_t *blocks;
    const uint32_t *offsets;
    uint32_t num_heads;
    uint32_t head_dim;
    uint32_t rotary_dim;
    uint32_t q_stride;
    uint32_t k_stride;
    uint32_t v_stride;
};

template <typename T, int kWidth> struct alignas(sizeof(T) * kWidth) Several {
    T x[kWidth];
};

// Rounded to `To` from what the activations are.
template <typename To, typename T, int kWidth>
__device__ __forceinline__ void copy(To *to, const Several<T, kWidth> &from) {
    Several<To, kWidth> rounded;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) rounded.x[i] = from_f32<To>(to_f32(from.x[i]));
    *reinterpret_cast<Several<To, kWidth> *>(to) = rounded;
}

template <typename T, typename Kv, int kWidth>
__device__ __forceinline__ void rope_store_by(const RopeStoreParams &p) {
    using Wide = Several<T, kWidth>;
    const uint32_t row = blockIdx.x;
    const uint32_t block = p.blocks[row];
    if (block == kNoBlock) return;
    const uint32_t offset = p.offsets[row], half = p.rotary_dim / 2, num_kv_heads = p.kv.num_kv_heads;
    T *q = static_cast<T *>(p.q) + static_cast<size_t>(row) * p.q_stride;
    T *k = static_cast<T *>(p.k) + static_cast<size_t>(row) * p.k_stride;
    const T *v = static_cast<const T *>(p.v) + static_cast<size_t>(row) * p.v_stride;
    const float2 *rotations = p.rotations + static_cast<size_t>(p.positions[row]) * half;
    const auto stored = [&](uint32_t head) {
        return page_of<Kv>(p.kv, block, head, p.head_dim) + offset * p.head_dim;
    };

    // What there is to do: pairs of q, pairs of k, the rest of k, v.
    const uint32_t num_pairs = half / kWidth, num_rest = (p.head_dim - p.rotary_dim) / kWidth;
    const uint32_t num_values = p.head_dim / kWidth;
    const uint32_t rotated = (p.num_heads + num_kv_heads) * num_pairs;
    const uint32_t rest_end = rotated + num_kv_heads * num_rest;
    const uint32_t end = rest_end + num_kv_heads * num_values;
    for (uint32_t i = threadIdx.x; i < end; i += blockDim.x) {
        if (i < rotated) {
            uint32_t head = i / num_pairs;
            const uint32_t at = i % num_pairs * kWidth;
            const bool is_key = head >= p.num_heads;
            if (is_key) head -= p.num_heads;
            T *x = (is_key ? k : q) + head * p.head_dim + at;
            Wide low = *reinterpret_cast<Wide *>(x), high = *reinterpret_cast<Wide *>(x + half);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                const float2 rotation = rotations[at + j];
                const float a = to_f32(low.x[j]), b = to_f32(high.x[j]);
                low.x[j] = from_f32<T>(a * rotation.x - b * rotation.y);
                high.x[j] = from_f32<T>(b * rotation.x + a * rotation.y);
            }
            *reinterpret_cast<Wide *>(x) = low;
            *reinterpret_cast<Wide *>(x + half) = high;
            if (is_key) {
                copy(stored(head) + at, low);
                copy(stored(head) + at + half, high);
            }
        } else if (i < rest_end) {
            const uint32_t head = (i - rotated) / num_rest;
            const uint32_t at = p.rotary_dim + (i - rotated) % num_rest * kWidth;
            copy(stored(head) + at, *reinterpret_cast<const Wide *>(k + head * p.head_dim + at));
        } else {
            const uint32_t head = (i - rest_end) / num_values, at = (i - rest_end) % num_values * kWidth;
            copy(stored(head) + kBlockTokens * p.head_dim + at,
                 *reinterpret_cast<const Wide *>(v + head * p.head_dim + at));
        }
    }
}

template <typename T, typename Kv> __device__ __forceinline__ void rope_store(const RopeStoreParams &p) {
    if (p.rotary_dim % 16 == 0) {
        rope_store_by<T, Kv, 8>(p);
    } else {
        rope_store_by<T, Kv, 1>(p);
    }
}

WEFT_KERNEL(rope_store_f16_f16, RopeStoreParams, 512) { rope_store<f16, f16>(p); }
WEFT_KERNEL(rope_store_f16_bf16, RopeStoreParams, 512) { rope_store<f16, bf16>(p); }
WEFT_KERNEL(rope_store_f16_e4m3, RopeStoreParams, 512) { rope_store<f16, e4m3>(p); }
WEFT_KERNEL(rope_store_bf16_f16, RopeStoreParams, 512) { rope_store<bf16, f16>(p); }
WEFT_KERNEL(rope_store_bf16_bf16, RopeStoreParams, 512) { rope_store<bf16, bf16>(p); }
WEFT_KERNEL(rope_store_bf16_e4m3, RopeStoreParams, 512) { rope_store<bf16, e4m3>(p); }
