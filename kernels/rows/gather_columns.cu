// out[t,k] = x[t,order[k]]    x, out:[T,K] of 16 bits  order:[K] u32
//
// For linears whose inputs are stored in another order (GPTQ's act-order). A block is a row. Bound: launch.
#include "../common/cuda.cuh"

struct GatherColumnsParams {
    const uint16_t *x;
    const uint32_t *order;
    uint16_t *out;
    uint32_t width;
    uint32_t pad;
};

WEFT_KERNEL(gather_columns, GatherColumnsParams, 256) {
    const uint16_t *from = p.x + size_t{blockIdx.x} * p.width;
    uint16_t *to = p.out + size_t{blockIdx.x} * p.width;
    for (uint32_t k = threadIdx.x; k < p.width; k += blockDim.x) to[k] = from[p.order[k]];
}
