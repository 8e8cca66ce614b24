// What all LoRA kernels share: an adapter's table in device memory, the pieces of a step, and weights
// of any type as floats. The host writes both: crates/cuda/src/adapter_table.rs, work_list.rs.
#pragma once

#include "../common/cuda.cuh"

enum class Dtype : uint32_t { kF32, kF16, kBf16, kI8 };
enum class Activation : uint32_t { kRelu, kGelu, kGeluTanh, kSilu, kTanh, kIdentity };

// Rows first_row .. end_row of a matrix, one after the other.
struct RowRun {
    const unsigned char *address;
    uint32_t first_row;
    uint32_t end_row;
};

// A row-major matrix. Its first run stands here: almost always there is no other, and reading an
// address costs as long as reading weights.
struct LoraMatrix {
    const unsigned char *first;
    const RowRun *runs;  // the others
    uint32_t first_end;
    uint32_t num_runs;
};

// What an adapter does at a linear:
//
//   y[t,:] = gain_out * (W (gain_in * x[t,:]) + sum_j scales[j] * (x[t,:] . A[j,:]) * B[j,:]) + shift
//
// A:[rank,K]  B:[rank,N]. Or behind one, in a record of its own, where x is y:
//
//   y[t,:] += sum_j act(scales[j] * (y[t,:] . A[j,:]) + h_bias[j]) * h_scales[j] * B[j,:] + shift
//
// 128 bytes, all zeros where it does nothing.
struct LoraSite {
    LoraMatrix a;
    LoraMatrix b;
    const float *scales;    // null: all are `scale`
    const float *gain_in;   // [K] or null
    const float *gain_out;  // [N] or null
    const float *shift;     // [N] or null
    const float *h_bias;    // [rank], of bottlenecks
    const float *h_scales;  // [rank], of bottlenecks; null: all are 1
    float scale;
    uint32_t rank;  // exact; 0: no update
    Dtype a_dtype;
    Dtype b_dtype;
    Activation activation;
    uint32_t num_tokens;  // rows of A of the embedding's update
    uint32_t pad[2];
};

// Rows of one adapter. Padding has none.
struct LoraPiece {
    const LoraSite *sites;
    uint32_t first_row;
    uint32_t num_rows;
};

constexpr int kMaxTargets = 3;

// Where a row lies, and how many rows (this one and those behind it) lie one after the other.
struct LoraRows {
    const unsigned char *first;
    uint32_t num_rows;
};
__device__ __forceinline__ LoraRows rows_from(const LoraMatrix &m, uint32_t row, size_t row_bytes) {
    if (row < m.first_end) return {m.first + row * row_bytes, m.first_end - row};
    uint32_t low = 0, high = m.num_runs - 1;
    while (low < high) {
        const uint32_t middle = (low + high + 1) / 2;
        if (m.runs[middle].first_row <= row) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    const RowRun run = m.runs[low];
    return {run.address + (row - run.first_row) * row_bytes, run.end_row - row};
}
template <typename W>
__device__ __forceinline__ const W *row_of(const LoraMatrix &m, uint32_t row, uint32_t width) {
    return reinterpret_cast<const W *>(rows_from(m, row, width * sizeof(W)).first);
}

__device__ __forceinline__ float scale_of(const LoraSite &site, uint32_t j) {
    return site.scales == nullptr ? site.scale : site.scales[j];
}

// Calls f(Of<W>{}) with the type of the weights.
template <typename W> struct Of {
    using type = W;
};
template <typename F> __device__ __forceinline__ void with_dtype(Dtype dtype, F f) {
    switch (dtype) {
        case Dtype::kF32: return f(Of<float>{});
        case Dtype::kF16: return f(Of<f16>{});
        case Dtype::kBf16: return f(Of<bf16>{});
        case Dtype::kI8: return f(Of<int8_t>{});
    }
}

__device__ __forceinline__ float to_f32(int8_t x) { return static_cast<float>(x); }
template <> __device__ __forceinline__ int8_t from_f32<int8_t>(float x) { return static_cast<int8_t>(x); }

// Eight numbers as they lie in memory: 16 bytes; of int8, 8; of f32, 32.
template <typename W> struct alignas(8 * sizeof(W) < 16 ? 8 * sizeof(W) : 16) Raw8 {
    W x[8];
};

// W[column .. column + 8] of a row of `width`. Aligned: all widths are multiples of 8. Else there are
// zeros beyond the end.
template <bool kAligned, typename W>
__device__ __forceinline__ Raw8<W> load_raw8(const W *row, uint32_t column, uint32_t width) {
    if constexpr (kAligned) {
        return *reinterpret_cast<const Raw8<W> *>(row + column);
    } else {
        Raw8<W> raw;
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) {
            raw.x[i] = column + i < width ? row[column + i] : from_f32<W>(0.0f);
        }
        return raw;
    }
}

template <typename W> __device__ __forceinline__ void unpack8(const Raw8<W> &raw, float (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = to_f32(raw.x[i]);
}
// Conversions of integers have an eighth of the speed of sums: 2^23 + 128 + x is a float whose lowest
// byte is x + 128.
template <> __device__ __forceinline__ void unpack8<int8_t>(const Raw8<int8_t> &raw, float (&out)[8]) {
    const uint2 words = *reinterpret_cast<const uint2 *>(&raw);
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
        const uint32_t biased = (i < 4 ? words.x : words.y) ^ 0x80808080u;
        out[i] = __uint_as_float(__byte_perm(biased, 0x4b000000u, 0x7540u | (i % 4))) - 8388736.0f;
    }
}

// out[row, column .. column + 8] += add
template <bool kAligned, typename Out>
__device__ __forceinline__ void add8(Out *row, uint32_t column, uint32_t width, const float (&add)[8]) {
    Raw8<Out> raw = load_raw8<kAligned>(static_cast<const Out *>(row), column, width);
#pragma unroll
    for (int i = 0; i < 8; ++i) raw.x[i] = from_f32<Out>(to_f32(raw.x[i]) + add[i]);
    if constexpr (kAligned) {
        *reinterpret_cast<Raw8<Out> *>(row + column) = raw;
    } else {
        for (uint32_t i = 0; i < 8; ++i) {
            if (column + i < width) row[column + i] = raw.x[i];
        }
    }
}
// The same at a row of f32, f16 or bf16. One kernel serves all: only its end differs.
template <bool kAligned>
__device__ __forceinline__ void add8(Dtype dtype, void *out, size_t row, uint32_t column, uint32_t width,
                                     const float (&add)[8]) {
    switch (dtype) {
        case Dtype::kF32: return add8<kAligned>(static_cast<float *>(out) + row * width, column, width, add);
        case Dtype::kF16: return add8<kAligned>(static_cast<f16 *>(out) + row * width, column, width, add);
        case Dtype::kBf16: return add8<kAligned>(static_cast<bf16 *>(out) + row * width, column, width, add);
        case Dtype::kI8: return;
    }
}
