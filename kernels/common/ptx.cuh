// Instructions that CUDA C++ has no name for: one wrapper each, with its meaning on the host.
// T is f16 or bf16; pairs of them are 32-bit registers, the lower number in the lower half.
#pragma once

#include "cuda.cuh"

#ifdef WEFT_EMULATED

namespace weft::emulated {

template <typename T> inline float half_of(uint32_t pair, int index);
template <> inline float half_of<f16>(uint32_t pair, int index) {
    return to_f32(f16{static_cast<uint16_t>(pair >> (16 * index))});
}
template <> inline float half_of<bf16>(uint32_t pair, int index) {
    return to_f32(bf16{static_cast<uint16_t>(pair >> (16 * index))});
}
inline uint32_t bits_of(f16 x) { return x.bits; }
inline uint32_t bits_of(bf16 x) { return x.bits; }
template <typename T> inline T round_to(float x);
template <> inline f16 round_to<f16>(float x) { return __float2half_rn(x); }
template <> inline bf16 round_to<bf16>(float x) { return __float2bfloat16_rn(x); }

template <typename T, typename Op> inline uint32_t map_pair(Op op) {
    return bits_of(round_to<T>(op(0))) | bits_of(round_to<T>(op(1))) << 16;
}

struct Mma {
    float *d;
    const uint32_t *a, *b;
};
struct Ldmatrix {
    const unsigned char *row;
    uint32_t *d;
};

}  // namespace weft::emulated

// d = a * b + c in each half, rounded once.
template <typename T> inline uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
    using namespace weft::emulated;
    return map_pair<T>([&](int i) {
        return fmaf(half_of<T>(a, i), half_of<T>(b, i), half_of<T>(c, i));
    });
}
template <typename T> inline uint32_t add2(uint32_t a, uint32_t b) {
    using namespace weft::emulated;
    return map_pair<T>([&](int i) { return half_of<T>(a, i) + half_of<T>(b, i); });
}
template <typename T> inline uint32_t sub2(uint32_t a, uint32_t b) {
    using namespace weft::emulated;
    return map_pair<T>([&](int i) { return half_of<T>(a, i) - half_of<T>(b, i); });
}
template <typename T> inline uint32_t mul2(uint32_t a, uint32_t b) {
    using namespace weft::emulated;
    return map_pair<T>([&](int i) { return half_of<T>(a, i) * half_of<T>(b, i); });
}
template <typename T> inline uint32_t pack2(float low, float high) {
    using namespace weft::emulated;
    return map_pair<T>([&](int i) { return i == 0 ? low : high; });
}

// mma.sync.m16n8k16, row x col, f32 accumulation: d[16,8] += a[16,16] b[16,8]. With g = lane / 4 and
// t = lane % 4:
//   a[0..4]: pairs of row g (a0, a2) and g + 8 (a1, a3), columns 2t (a0, a1) and 2t + 8 (a2, a3)
//   b[0..2]: pairs of column g, rows 2t and 2t + 8
//   d[0..4]: row g columns 2t, 2t + 1; row g + 8 columns 2t, 2t + 1
template <typename T> inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
    using namespace weft::emulated;
    Mma operands{d, a, b};
    warp_collective(kFullWarp, &operands, [](void **lanes) {
        float a[16][16], b[16][8];
        for (int lane = 0; lane < 32; ++lane) {
            const auto *own = static_cast<const Mma *>(lanes[lane]);
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 2; ++i) {
                a[g][2 * t + i] = half_of<T>(own->a[0], i);
                a[g + 8][2 * t + i] = half_of<T>(own->a[1], i);
                a[g][2 * t + 8 + i] = half_of<T>(own->a[2], i);
                a[g + 8][2 * t + 8 + i] = half_of<T>(own->a[3], i);
                b[2 * t + i][g] = half_of<T>(own->b[0], i);
                b[2 * t + 8 + i][g] = half_of<T>(own->b[1], i);
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            auto *own = static_cast<Mma *>(lanes[lane]);
            for (int i = 0; i < 4; ++i) {
                const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = own->d[i];
                for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
                own->d[i] = sum;
            }
        }
    });
}

namespace weft::emulated {

template <int kNum, bool kTransposed> inline void ldmatrix(uint32_t *d, const void *row) {
    Ldmatrix operands{static_cast<const unsigned char *>(row), d};
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix needs rows aligned to 16 bytes");
    warp_collective(kFullWarp, &operands, [](void **lanes) {
        for (int matrix = 0; matrix < kNum; ++matrix) {
            uint16_t m[8][8];
            for (int row = 0; row < 8; ++row) {
                std::memcpy(m[row], static_cast<Ldmatrix *>(lanes[matrix * 8 + row])->row, 16);
            }
            for (int lane = 0; lane < 32; ++lane) {
                const int g = lane / 4, t = lane % 4;
                const uint32_t low = kTransposed ? m[2 * t][g] : m[g][2 * t];
                const uint32_t high = kTransposed ? m[2 * t + 1][g] : m[g][2 * t + 1];
                static_cast<Ldmatrix *>(lanes[lane])->d[matrix] = low | high << 16;
            }
        }
    });
}

}  // namespace weft::emulated

// Matrices of 8 x 8 from shared memory: lanes 8 i .. 8 i + 8 bring the rows of matrix i. A lane gets
// row lane / 4, columns 2 (lane % 4) and the next (transposed: the column and rows).
inline void ldmatrix_x4(uint32_t (&d)[4], const void *row) { weft::emulated::ldmatrix<4, false>(d, row); }
inline void ldmatrix_x4_trans(uint32_t (&d)[4], const void *row) {
    weft::emulated::ldmatrix<4, true>(d, row);
}
inline void ldmatrix_x2(uint32_t (&d)[2], const void *row) { weft::emulated::ldmatrix<2, false>(d, row); }
inline void ldmatrix_x2_trans(uint32_t (&d)[2], const void *row) {
    weft::emulated::ldmatrix<2, true>(d, row);
}

// A matrix of 8 x 8 pairs of which a lane holds row lane / 4, columns 2 (lane % 4) and the next, in its
// transposed form: the same place of the transposed matrix.
inline uint32_t movmatrix_trans(uint32_t pair) {
    uint32_t operands[2] = {pair, 0};
    weft::emulated::warp_collective(kFullWarp, operands, [](void **lanes) {
        uint16_t m[8][8];
        for (int lane = 0; lane < 32; ++lane) {
            std::memcpy(&m[lane / 4][2 * (lane % 4)], lanes[lane], 4);
        }
        for (int lane = 0; lane < 32; ++lane) {
            const int g = lane / 4, t = lane % 4;
            static_cast<uint32_t *>(lanes[lane])[1] = m[2 * t][g] | uint32_t{m[2 * t + 1][g]} << 16;
        }
    });
    return operands[1];
}

// 2^x, to about 22 bits; 0 at minus infinity.
inline float exp2_approx(float x) { return std::exp2(x); }

// Sixteen bytes from global to shared memory, past the registers. Zeros if not `valid`.
inline void cp_async_16(void *shared, const void *global, bool valid = true) {
    static const unsigned char zeros[16] = {};
    const auto is_aligned = [](const void *p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
    if (!is_aligned(shared) || (valid && !is_aligned(global))) {
        weft::emulated::fail("cp.async needs addresses aligned to 16 bytes");
    }
    weft::emulated::copy_async(shared, valid ? global : zeros, 16);
}
inline void cp_async_commit() { weft::emulated::copy_commit(); }
// Waits until at most `kPending` of the thread's groups are under way. A barrier must follow before
// others read.
template <int kPending> inline void cp_async_wait() { weft::emulated::copy_wait(kPending); }

// Sixteen bytes that nobody else of the multiprocessor reads: they take no room in its cache.
inline uint4 load_once_16(const void *global) { return *static_cast<const uint4 *>(global); }

#else  // CUDA

template <typename T> struct PairOf;
template <> struct PairOf<f16> {
    using type = __half2;
};
template <> struct PairOf<bf16> {
    using type = __nv_bfloat162;
};
template <typename T> __device__ __forceinline__ typename PairOf<T>::type as_pair(uint32_t bits) {
    return *reinterpret_cast<typename PairOf<T>::type *>(&bits);
}
template <typename P> __device__ __forceinline__ uint32_t as_bits(P pair) {
    return *reinterpret_cast<uint32_t *>(&pair);
}
template <typename T> __device__ __forceinline__ uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
    return as_bits(__hfma2(as_pair<T>(a), as_pair<T>(b), as_pair<T>(c)));
}
template <typename T> __device__ __forceinline__ uint32_t add2(uint32_t a, uint32_t b) {
    return as_bits(__hadd2(as_pair<T>(a), as_pair<T>(b)));
}
template <typename T> __device__ __forceinline__ uint32_t sub2(uint32_t a, uint32_t b) {
    return as_bits(__hsub2(as_pair<T>(a), as_pair<T>(b)));
}
template <typename T> __device__ __forceinline__ uint32_t mul2(uint32_t a, uint32_t b) {
    return as_bits(__hmul2(as_pair<T>(a), as_pair<T>(b)));
}
template <typename T> __device__ __forceinline__ uint32_t pack2(float low, float high);
template <> __device__ __forceinline__ uint32_t pack2<f16>(float low, float high) {
    return as_bits(__floats2half2_rn(low, high));
}
template <> __device__ __forceinline__ uint32_t pack2<bf16>(float low, float high) {
    return as_bits(__floats2bfloat162_rn(low, high));
}

template <typename T> __device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                                                   const uint32_t (&b)[2]);
template <> __device__ __forceinline__ void mma_m16n8k16<f16>(float (&d)[4], const uint32_t (&a)[4],
                                                              const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> __device__ __forceinline__ void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4],
                                                               const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
                 "{%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ uint32_t shared_address(const void *pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&d)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&d)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&d)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ uint32_t movmatrix_trans(uint32_t pair) {
    uint32_t result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
    return result;
}
__device__ __forceinline__ float exp2_approx(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__device__ __forceinline__ void cp_async_16(void *shared, const void *global, bool valid = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ uint4 load_once_16(const void *global) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(global));
    return value;
}

#endif
