// x[t,:] *= gain_in, or y[t,:] = gain_out * y[t,:] + shift    x, y:[T,N] T or f32, in place
//                                                             gains, shift:[N] f32, or none
//
// What the adapter of a row has at this site. Input gains come before the base and are not for A, output
// gains and shifts after base and update. A block is (columns, piece); rows without are not touched.
// Bound: bytes of x, twice / bandwidth.
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

// Eight numbers of a vector, or `none` of them.
__device__ __forceinline__ void load_vector8(const float *vector, float none, uint32_t column,
                                             uint32_t width, float (&out)[8]) {
    if (vector == nullptr) {
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] = none;
    } else if (width % 8 == 0) {
        unpack8(load_raw8<true>(vector, column, width), out);
    } else {
        unpack8(load_raw8<false>(vector, column, width), out);
    }
}

template <typename T> __device__ __forceinline__ void apply_gains(const GainsParams &p) {
    const LoraPiece piece = p.pieces[blockIdx.y];
    if (piece.num_rows == 0) return;
    const LoraSite &site = piece.sites[p.site];
    const float *gain = p.is_input != 0 ? site.gain_in : site.gain_out;
    const float *shift = p.is_input != 0 ? nullptr : site.shift;
    const uint32_t column = (blockIdx.x * kThreads + threadIdx.x) * 8;
    if ((gain == nullptr && shift == nullptr) || column >= p.width) return;
    float factors[8], shifts[8];
    load_vector8(gain, 1.0f, column, p.width, factors);
    load_vector8(shift, 0.0f, column, p.width, shifts);
    for (uint32_t t = 0; t < piece.num_rows; ++t) {
        T *row = static_cast<T *>(p.x) + size_t{piece.first_row + t} * p.width;
        if (p.width % 8 == 0) {
            Raw8<T> raw = load_raw8<true>(static_cast<const T *>(row), column, p.width);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                raw.x[i] = from_f32<T>(fmaf(to_f32(raw.x[i]), factors[i], shifts[i]));
            }
            *reinterpret_cast<Raw8<T> *>(row + column) = raw;
        } else {
            for (uint32_t i = 0; i < 8 && column + i < p.width; ++i) {
                row[column + i] = from_f32<T>(fmaf(to_f32(row[column + i]), factors[i], shifts[i]));
            }
        }
    }
}

WEFT_KERNEL(apply_gains_f16, GainsParams, kThreads) { apply_gains<f16>(p); }
WEFT_KERNEL(apply_gains_bf16, GainsParams, kThreads) { apply_gains<bf16>(p); }
WEFT_KERNEL(apply_gains_f32, GainsParams, kThreads) { apply_gains<float>(p); }
