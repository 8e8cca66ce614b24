// The paged KV cache as kernels see it: where a page lies, what its numbers are, and how a warp turns
// pages in shared memory into operands of the tensor cores.
//
// An arena of equal chunks; block b is the front of chunk b and holds 16 tokens over all layers. For
// each layer, each KV head: keys [16, head_dim], then values [16, head_dim].
#pragma once

#include "../common/ptx.cuh"

constexpr int kBlockTokens = 16;
constexpr uint32_t kNoBlock = 0xffffffffu;

// Eight bits: sign, four of exponent (bias 7), three of mantissa; no infinities, up to 448. Written and
// read with plain arithmetic, the same on every device.
struct e4m3 {
    uint8_t bits;
};

template <> __device__ __forceinline__ e4m3 from_f32<e4m3>(float x) {
    const uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80u;
    uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return {static_cast<uint8_t>(0x7fu)};
    if (rest < 0x3c800000u) {  // below 2^-6, a multiple of 2^-9: let the adder round
        rest = __float_as_uint(__uint_as_float(rest) + 16384.0f) - 0x46800000u;
    } else {  // saturates
        rest = min((rest - 0x3c000000u + 0x7ffffu + (rest >> 20 & 1)) >> 20, 0x7eu);
    }
    return {static_cast<uint8_t>(sign | rest)};
}

// Two bytes of `four` as a pair of f16, exactly: shifted into place, and times 2^8 for the bias.
// `selector` puts each byte into the upper half of a 16-bit number.
__device__ __forceinline__ uint32_t e4m3_pair(uint32_t four, uint32_t selector) {
    const uint32_t wide = __byte_perm(four, 0u, selector);
    return mul2<f16>((wide & 0x80008000u) | (wide & 0x7f007f00u) >> 1, 0x5c005c00u);
}

// In which type the tensor cores multiply.
template <typename Kv> struct MathOf {
    using type = Kv;
};
template <> struct MathOf<e4m3> {
    using type = f16;
};

struct PagedKv {
    unsigned char *arena;
    uint64_t chunk_bytes;
    uint32_t layer;
    uint32_t num_kv_heads;
};

// The keys of a block's page; its values follow.
template <typename Kv>
__device__ __forceinline__ Kv *page_of(const PagedKv &kv, uint32_t block, uint32_t head, uint32_t head_dim) {
    const size_t page = static_cast<size_t>(kv.layer) * kv.num_kv_heads + head;
    Kv *start = reinterpret_cast<Kv *>(kv.arena + block * kv.chunk_bytes);
    return start + page * (2 * kBlockTokens * head_dim);
}

// A 16-bit number of activations, whose type is known at run time: it matters at the edges only.
__device__ __forceinline__ float load_activation(const void *x, size_t index, bool is_bf16) {
    return is_bf16 ? to_f32(static_cast<const bf16 *>(x)[index]) : to_f32(static_cast<const f16 *>(x)[index]);
}
__device__ __forceinline__ void store_activation(void *x, size_t index, float value, bool is_bf16) {
    if (is_bf16) {
        static_cast<bf16 *>(x)[index] = from_f32<bf16>(value);
    } else {
        static_cast<f16 *>(x)[index] = from_f32<f16>(value);
    }
}
// Numbers `index` and the next; `index` is even.
template <typename Math>
__device__ __forceinline__ uint32_t load_pair(const void *x, size_t index, bool is_bf16) {
    const uint32_t pair = *reinterpret_cast<const uint32_t *>(static_cast<const uint16_t *>(x) + index);
    const auto *halves = reinterpret_cast<const uint16_t *>(&pair);
    const float low = load_activation(halves, 0, is_bf16), high = load_activation(halves, 1, is_bf16);
    return pack2<Math>(to_f32(from_f32<Math>(low)), to_f32(from_f32<Math>(high)));
}
__device__ __forceinline__ void store_pair(void *x, size_t index, float low, float high, bool is_bf16) {
    const uint32_t pair =
        is_bf16 ? pack2<bf16>(low, high)
                : pack2<f16>(to_f32(from_f32<f16>(low)), to_f32(from_f32<f16>(high)));
    *reinterpret_cast<uint32_t *>(static_cast<uint16_t *>(x) + index) = pair;
}

// Rows of keys or values in shared memory: an odd number of 16-byte units apart, so that the eight
// rows of a matrix lie in eight different groups of banks.
template <typename Kv, int kHeadDim> struct Rows {
    static constexpr int kBytes = kHeadDim * static_cast<int>(sizeof(Kv));
    static constexpr int kUnits = kBytes / 16;
    static constexpr int kStride = kUnits % 2 == 1 ? kBytes : kBytes + 16;
};

// Operands come in steps of 16 columns of a head. A thread (g = lane / 4, t = lane % 4) holds four of
// them: for 16-bit numbers columns 2t, 2t + 1 and 2t + 8, 2t + 9. Bytes are moved by the same
// instructions two at a time, and so the four are 4t .. 4t + 3: a sum over columns does not mind, and
// outputs are written where they belong. This is the column of the first (half 0) or third.
template <typename Kv> __device__ __forceinline__ int column_of(int step, int half) {
    const int t = lane_index() % 4;
    return 16 * step + (sizeof(Kv) == 1 ? 4 * t + 2 * half : 2 * t + 8 * half);
}
