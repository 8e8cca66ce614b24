// out = x    `num` numbers of 16 bits, at multiples of 16 bytes or not
//
// A thread has eight numbers. Bound: their bytes, twice / bandwidth.
#include "../common/cuda.cuh"

struct CopyParams {
    const uint16_t *x;
    uint16_t *out;
    uint64_t num;
    uint32_t is_aligned;
    uint32_t pad;
};

WEFT_KERNEL(copy_halves, CopyParams, 256) {
    const uint64_t first = (uint64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 8;
    if (p.is_aligned != 0 && first + 8 <= p.num) {
        *reinterpret_cast<uint4 *>(p.out + first) = *reinterpret_cast<const uint4 *>(p.x + first);
        return;
    }
    for (uint64_t i = first; i < first + 8 && i < p.num; ++i) p.out[i] = p.x[i];
}
