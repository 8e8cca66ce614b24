// out[i,:] = x[rows[i],:]    x:[T,N] f32  rows:[R] u32  out:[R,N] f32
//
// A block is a row. Bound: twice the bytes of the rows / bandwidth.
#include "../common/cuda.cuh"

struct GatherParams {
    const float *x;
    const uint32_t *rows;
    float *out;
    uint32_t width;
    uint32_t pad;
};

WEFT_KERNEL(gather_f32, GatherParams, 256) {
    const float *from = p.x + size_t{p.rows[blockIdx.x]} * p.width;
    float *to = p.out + size_t{blockIdx.x} * p.width;
    if (p.width % 4 == 0) {
        for (uint32_t i = threadIdx.x * 4; i < p.width; i += blockDim.x * 4) {
            *reinterpret_cast<float4 *>(to + i) = *reinterpret_cast<const float4 *>(from + i);
        }
        return;
    }
    for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) to[i] = from[i];
}
