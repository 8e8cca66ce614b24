// out[t,:] = W[tokens[t],:]    tokens:[T] u32  W:[N,K] packed (matmul/weights.cuh)  out:[T,K] f32
//
// A block takes a row, a thread four neighbouring inputs. A token that W does not have gives NaNs: its
// sequence fails, and no other.
#include "../matmul/weights.cuh"

struct EmbedParams {
    const uint32_t *tokens;
    const void *codes;
    const void *scales;
    const float *codebook;
    float *out;
    uint32_t num_rows;
    uint32_t num_inputs;
    uint32_t num_outputs;
    uint32_t num_steps;
    uint32_t flags;
    uint32_t offset;
};

constexpr int kEmbedThreads = 256;

// scale * code + min or scale * (code - zero), of the group at `at`; `code` without its offset.
template <typename T>
__device__ __forceinline__ float affine(const T *scales, uint32_t flags, uint32_t at, float code) {
    if ((flags & kHasMin) == 0) return to_f32(scales[at]) * code;
    const float scale = to_f32(scales[2 * at]), min = to_f32(scales[2 * at + 1]);
    return (flags & kHasZero) != 0 ? scale * (code - min) : scale * code + min;
}

template <typename T, Format kFormat> __device__ __forceinline__ void embed(const EmbedParams &p) {
    const uint32_t token = p.tokens[blockIdx.x];
    float *out = p.out + static_cast<size_t>(blockIdx.x) * p.num_inputs;
    const uint32_t tile = token / kTile, g = token % 8, high = token % kTile / 8;
    for (uint32_t first = threadIdx.x * 4; first < p.num_inputs; first += blockDim.x * 4) {
        const size_t step = static_cast<size_t>(tile) * p.num_steps + first / kStep;
        const uint32_t j = first % kStep / 32 * 2 + first % 8 / 4;  // which of four matrices
        const uint32_t lane = g * 4 + first % 32 / 8;
        const uint8_t *codes = static_cast<const uint8_t *>(p.codes);
        for (uint32_t i = 0; i < 4 && first + i < p.num_inputs; ++i) {
            const uint32_t pair = high + i / 2 * 2;
            float value;
            if (token >= p.num_outputs) {
                value = __uint_as_float(0x7fc00000u);
            } else if constexpr (kFormat == Format::kDense) {
                const size_t at = ((step * 4 + j) * kWarpSize + lane) * 8 + pair * 2 + i % 2;
                value = to_f32(static_cast<const T *>(p.codes)[at]);
            } else if constexpr (kFormat == Format::kW8) {
                const size_t at = ((step * 2 + j / 2) * kWarpSize + lane) * 16 + j % 2 * 8 + high * 4 + i;
                const uint32_t num_groups = (p.flags & kGroup16) != 0 ? 4 : 2;
                const size_t row = (step * 8 + g) * 2 + high;
                const bool has_min = (p.flags & kHasMin) != 0;
                const T *scales = static_cast<const T *>(p.scales) + row * num_groups * (has_min ? 2 : 1);
                const float code = static_cast<float>(codes[at]) - static_cast<float>(p.offset);
                value = affine(scales, p.flags, first % kStep * num_groups / kStep, code);
            } else {
                const size_t at = (step * kWarpSize + lane) * 4 + j;
                const uint32_t word = static_cast<const uint32_t *>(p.codes)[at];
                const size_t row = (step * 8 + g) * 2 + high;
                if constexpr (kFormat == Format::kW4) {
                    const uint32_t code = word >> (4 * (pair + i % 2 * 4)) & 15;
                    const T *scales = static_cast<const T *>(p.scales) + row * 4;
                    value = affine(scales, p.flags | kHasMin, j / 2, static_cast<float>(code));
                } else {
                    const uint32_t code = word >> (4 * (pair * 2 + i % 2)) & 15;
                    value = p.codebook[code] * static_cast<const float *>(p.scales)[row];
                }
            }
            out[first + i] = value;
        }
    }
}

WEFT_KERNEL(embed_dense_f16, EmbedParams, kEmbedThreads) { embed<f16, Format::kDense>(p); }
WEFT_KERNEL(embed_dense_bf16, EmbedParams, kEmbedThreads) { embed<bf16, Format::kDense>(p); }
WEFT_KERNEL(embed_w4_f16, EmbedParams, kEmbedThreads) { embed<f16, Format::kW4>(p); }
WEFT_KERNEL(embed_w4_bf16, EmbedParams, kEmbedThreads) { embed<bf16, Format::kW4>(p); }
WEFT_KERNEL(embed_w8_f16, EmbedParams, kEmbedThreads) { embed<f16, Format::kW8>(p); }
WEFT_KERNEL(embed_w8_bf16, EmbedParams, kEmbedThreads) { embed<bf16, Format::kW8>(p); }
WEFT_KERNEL(embed_codebook_f16, EmbedParams, kEmbedThreads) { embed<f16, Format::kCodebook>(p); }
WEFT_KERNEL(embed_codebook_bf16, EmbedParams, kEmbedThreads) { embed<bf16, Format::kCodebook>(p); }
