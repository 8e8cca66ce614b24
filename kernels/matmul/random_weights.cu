// out[i] = random word    out:[len] u32
//
// Weights for measurements without a model: packed codes, dense weights or, with a constant, scales.
#include "../common/ptx.cuh"

struct RandomWeightsParams {
    uint32_t *out;
    uint64_t len;
    uint32_t kind;
    uint32_t seed;
    uint32_t num_codes;  // kBytes: codes are below this
    uint32_t constant;   // kConstant
    float bound;         // kF16, kBf16: uniform in -bound .. bound
    uint32_t pad;
};

constexpr uint32_t kConstant = 0;
constexpr uint32_t kBits = 1;
constexpr uint32_t kBytes = 2;
constexpr uint32_t kF16 = 3;

// Every bit depends on every other (a finaliser with multiplications and shifts).
__device__ __forceinline__ uint32_t mixed(uint32_t x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

WEFT_KERNEL(random_weights, RandomWeightsParams, 256) {
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < p.len; i += stride) {
        const uint32_t high = mixed(static_cast<uint32_t>(i >> 32) ^ p.seed);
        const uint32_t bits = mixed(static_cast<uint32_t>(i) ^ high);
        uint32_t word = bits;
        if (p.kind == kConstant) {
            word = p.constant;
        } else if (p.kind == kBytes) {
            word = 0;
            for (int byte = 0; byte < 4; ++byte) {
                word |= ((bits >> (8 * byte) & 0xff) * p.num_codes >> 8) << (8 * byte);
            }
        } else if (p.kind != kBits) {
            const float low = static_cast<float>(bits & 0xffff) * (2.0f / 65535.0f) - 1.0f;
            const float next = static_cast<float>(bits >> 16) * (2.0f / 65535.0f) - 1.0f;
            word = p.kind == kF16 ? pack2<f16>(low * p.bound, next * p.bound)
                                  : pack2<bf16>(low * p.bound, next * p.bound);
        }
        p.out[i] = word;
    }
}
