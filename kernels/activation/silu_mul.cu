// gate = silu(gate) * up    gate, up: `num` numbers of T, in place; silu(x) = x / (1 + exp(-x))
//
// A thread has eight numbers. Bound: three times their bytes / bandwidth.
#include "../common/cuda.cuh"

struct SiluMulParams {
    void *gate;
    const void *up;
    uint64_t num;
};

__device__ __forceinline__ float silu_mul_of(float gate, float up) {
    return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

template <typename T> __device__ __forceinline__ void silu_mul(const SiluMulParams &p) {
    const uint64_t first = (uint64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 8;
    T *gate = static_cast<T *>(p.gate) + first;
    const T *up = static_cast<const T *>(p.up) + first;
    if (first + 8 <= p.num) {
        Vec8<T> g = load8(gate);
        const Vec8<T> u = load8(up);
#pragma unroll
        for (int i = 0; i < 8; ++i) g.x[i] = from_f32<T>(silu_mul_of(to_f32(g.x[i]), to_f32(u.x[i])));
        store8(gate, g);
        return;
    }
    for (uint64_t i = 0; first + i < p.num; ++i) {
        gate[i] = from_f32<T>(silu_mul_of(to_f32(gate[i]), to_f32(up[i])));
    }
}

WEFT_KERNEL(silu_mul_f16, SiluMulParams, 256) { silu_mul<f16>(p); }
WEFT_KERNEL(silu_mul_bf16, SiluMulParams, 256) { silu_mul<bf16>(p); }
