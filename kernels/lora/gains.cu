// x[t,:] *= gain    x:[T,N] T or f32, in place  gain:[N] f32, the adapter's of this site, or none
//
// Output gains (DoRA, IA3) apply to base plus update, input gains before A, and before the base where
// the method says so. A block is (columns, piece); rows without a gain are not touched.
#include "lora.cuh"

struct GainsParams {
    const LoraPiece *pieces;
    void *x;
    uint32_t site;
    uint32_t width;
    uint32_t is_input;
    uint32_t pad;
};

constexpr uint32_t kThreads = 256;

template <typename T> __device__ __forceinline__ void apply_gains(const GainsParams &p) {
    const LoraPiece piece = p.pieces[blockIdx.y];
    if (piece.num_rows == 0) return;
    const LoraSite &site = piece.sites[p.site];
    const float *gain = p.is_input != 0 ? site.gain_in : site.gain_out;
    const uint32_t column = (blockIdx.x * kThreads + threadIdx.x) * 8;
    if (gain == nullptr || column >= p.width) return;
    float factors[8];
    if (p.width % 8 == 0) {
        unpack8(load_raw8<true>(gain, column, p.width), factors);
    } else {
        unpack8(load_raw8<false>(gain, column, p.width), factors);
    }
    for (uint32_t t = 0; t < piece.num_rows; ++t) {
        T *row = static_cast<T *>(p.x) + size_t{piece.first_row + t} * p.width;
        if (p.width % 8 == 0) {
            Raw8<T> raw = load_raw8<true>(static_cast<const T *>(row), column, p.width);
#pragma unroll
            for (int i = 0; i < 8; ++i) raw.x[i] = from_f32<T>(to_f32(raw.x[i]) * factors[i]);
            *reinterpret_cast<Raw8<T> *>(row + column) = raw;
        } else {
            for (uint32_t i = 0; i < 8 && column + i < p.width; ++i) {
                row[column + i] = from_f32<T>(to_f32(row[column + i]) * factors[i]);
            }
        }
    }
}

WEFT_KERNEL(apply_gains_f16, GainsParams, kThreads) { apply_gains<f16>(p); }
WEFT_KERNEL(apply_gains_bf16, GainsParams, kThreads) { apply_gains<bf16>(p); }
WEFT_KERNEL(apply_gains_f32, GainsParams, kThreads) { apply_gains<float>(p); }
