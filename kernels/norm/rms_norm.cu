// out[t,:] = x[t,:] / sqrt(mean(x[t,:]^2) + eps) * weight    x:[T,N] f32 or T  weight:[N] f32  out:[T,N] T
//
// RMSNorm (Zhang & Sennrich 2019). A block is a row. The residual stream is f32, what linears read is
// 16 bits. A norm of heads is the same over rows of head_dim, in place.
#include "../common/cuda.cuh"

struct RmsNormParams {
    const void *x;
    const float *weight;
    void *out;
    uint32_t num_rows;
    uint32_t width;
    float eps;
};

template <typename In, typename Out> __device__ void rms_norm(const RmsNormParams &p) {
    __shared__ float scratch[kWarpSize];
    const size_t row = blockIdx.x;
    const In *x = static_cast<const In *>(p.x) + row * p.width;
    Out *out = static_cast<Out *>(p.out) + row * p.width;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) {
        const float value = to_f32(x[i]);
        sum += value * value;
    }
    const float scale = rsqrtf(block_sum(sum, scratch) / static_cast<float>(p.width) + p.eps);
    for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) {
        out[i] = from_f32<Out>(to_f32(x[i]) * scale * p.weight[i]);
    }
}

WEFT_KERNEL(rms_norm_f16, RmsNormParams, 1024) { rms_norm<float, f16>(p); }
WEFT_KERNEL(rms_norm_bf16, RmsNormParams, 1024) { rms_norm<float, bf16>(p); }
WEFT_KERNEL(head_norm_f16, RmsNormParams, 1024) { rms_norm<f16, f16>(p); }
WEFT_KERNEL(head_norm_bf16, RmsNormParams, 1024) { rms_norm<bf16, bf16>(p); }
