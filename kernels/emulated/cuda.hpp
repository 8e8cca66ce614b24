// What kernels use of CUDA C++, with a meaning on the host. Included instead of CUDA's headers when
// WEFT_EMULATED is defined; common/cuda.cuh includes the one or the other.
#pragma once

#include "emulator.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
// One block at a time runs on a thread of the host.
#define __shared__ static thread_local

#define threadIdx (::weft::emulated::current().thread_idx)
#define blockIdx (::weft::emulated::current().block_idx)
#define blockDim (::weft::emulated::current().block_dim)
#define gridDim (::weft::emulated::current().grid_dim)

// A kernel: WEFT_KERNEL(name, Params, max_threads) { ... p.field ... }
#define WEFT_KERNEL(name, Params, max_threads) WEFT_KERNEL_BLOCKS(name, Params, max_threads, 1)
#define WEFT_KERNEL_BLOCKS(name, Params, max_threads, min_blocks)                               \
    static void name##_body(const Params &p);                                                   \
    static const ::weft::emulated::Registration name##_registration(                            \
        #name, sizeof(Params), max_threads,                                                     \
        [](const void *params) { name##_body(*static_cast<const Params *>(params)); });         \
    static void name##_body([[maybe_unused]] const Params &p)

// The dynamic shared memory of the block, aligned to 128 bytes.
inline unsigned char *dynamic_shared() { return ::weft::emulated::current().shared; }

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline void __syncthreads() { ::weft::emulated::block_barrier(); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    ::weft::emulated::warp_collective(mask, &mask, [](void **) {});
}

namespace weft::emulated {

struct Shuffle {
    uint64_t value;
    unsigned source;
    uint64_t result;
};

template <typename T> T shuffle(unsigned mask, T value, unsigned source) {
    static_assert(sizeof(T) <= 8, "shuffles move up to eight bytes");
    Shuffle shuffle{0, source, 0};
    std::memcpy(&shuffle.value, &value, sizeof(T));
    warp_collective(mask, &shuffle, [](void **lanes) {
        for (unsigned i = 0; i < 32; ++i) {
            if (lanes[i] == nullptr) continue;
            auto *own = static_cast<Shuffle *>(lanes[i]);
            auto *other = static_cast<Shuffle *>(lanes[own->source]);
            if (other == nullptr) fail("a shuffle reads a lane that does not take part");
            own->result = other->value;
        }
    });
    T result;
    std::memcpy(&result, &shuffle.result, sizeof(T));
    return result;
}

inline unsigned lane_id() { return current().lane; }

struct Ballot {
    bool predicate;
    unsigned result;
};

}  // namespace weft::emulated

template <typename T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const unsigned lane = ::weft::emulated::lane_id();
    return ::weft::emulated::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    const unsigned lane = ::weft::emulated::lane_id(), source = lane ^ lanes;
    const bool inside = (lane / width) == (source / width);
    return ::weft::emulated::shuffle(mask, value, inside ? source : lane);
}
template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = ::weft::emulated::lane_id();
    const bool inside = lane % width + delta < static_cast<unsigned>(width);
    return ::weft::emulated::shuffle(mask, value, inside ? lane + delta : lane);
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned lane = ::weft::emulated::lane_id();
    return ::weft::emulated::shuffle(mask, value, lane % width >= delta ? lane - delta : lane);
}
inline unsigned __ballot_sync(unsigned mask, bool predicate) {
    using ::weft::emulated::Ballot;
    Ballot ballot{predicate, 0};
    ::weft::emulated::warp_collective(mask, &ballot, [](void **lanes) {
        unsigned result = 0;
        for (unsigned i = 0; i < 32; ++i) {
            if (lanes[i] != nullptr && static_cast<Ballot *>(lanes[i])->predicate) result |= 1u << i;
        }
        for (unsigned i = 0; i < 32; ++i) {
            if (lanes[i] != nullptr) static_cast<Ballot *>(lanes[i])->result = result;
        }
    });
    return ballot.result;
}
inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
inline bool __all_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, !predicate) == 0; }

template <typename T> inline T __ldg(const T *pointer) { return *pointer; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
// Never fused with what follows.
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
    const uint64_t bytes = uint64_t{y} << 32 | x;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        result |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    }
    return result;
}
template <typename T> inline T atomicAdd(T *target, T value) {
    return __atomic_fetch_add(target, value, __ATOMIC_RELAXED);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

using std::fmaf;
using std::fmaxf;
using std::fminf;
template <typename T> inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> inline T max(T a, T b) { return a < b ? b : a; }

// Half precision and bfloat16: bits, and conversions that round to nearest, ties to even.
struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __half2float(__half value) {
    const uint32_t sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
    if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    // Shifted into place; the multiplication moves the exponent and makes subnormals normal.
    const float scaled = __uint_as_float(rest << 13) * __uint_as_float(0x77800000u);  // 2^112
    return __uint_as_float(sign | __float_as_uint(scaled));
}
inline __half __float2half_rn(float value) {
    const uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    uint32_t half;
    if (rest > 0x7f800000u) {
        half = 0x7e00u;
    } else if (rest >= 0x477ff000u) {  // rounds to 65520 or more
        half = 0x7c00u;
    } else if (rest < 0x38800000u) {  // a subnormal half: let the adder round
        half = __float_as_uint(__uint_as_float(rest) + 0.5f) - 0x3f000000u;
    } else {
        half = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13;
    }
    return {static_cast<uint16_t>(sign | half)};
}
inline float __bfloat162float(__nv_bfloat16 value) {
    return __uint_as_float(uint32_t{value.bits} << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
