// Weights [N,K] in the order in which tensor cores want them, and how they become 16-bit pairs.
//
// A *tile* is sixteen outputs, a *step* sixty-four inputs: four matrices A of mma.m16n8k16. With
// g = lane / 4 and t = lane % 4, a lane holds rows g and g + 8. Inputs are permuted within halves of
// a step, so that a lane's share of x is eight neighbours, one 16-byte load: of half h it takes inputs
// 32 h + 8 t .. + 8; matrix j = 2 h + i of the step takes inputs 4 i .. 4 i + 4 of these:
//   a0 = row g, inputs 0, 1   a1 = row g + 8, inputs 0, 1   a2, a3 = the same rows, inputs 2, 3
// Both N and K are padded, to tiles and steps.
//
// | format   | a step of a tile, per lane                  | scales of a step of a tile, per g           |
// |----------|---------------------------------------------|---------------------------------------------|
// | dense    | 4 x 16 bytes: a0 .. a3 of a matrix each     | none                                        |
// | W4       | 16 bytes: a word for each matrix, a pair s  | rows g, g + 8: groups of 32: (scale, min)   |
// |          | in nibbles s and s + 4                      |                                             |
// | W8       | 2 x 16 bytes: two words for each matrix,    | rows g, g + 8: groups of 32 or 16:          |
// |          | rows g and g + 8, inputs in order           | (scale, min), or without min two scales     |
// | codebook | 16 bytes: a word for each matrix, a pair s  | rows g, g + 8: f32 absmax                   |
// |          | in byte s                                   |                                             |
//
// value = scale * (code - offset) + min, or scale * (code - offset - zero), or codebook[code] * absmax.
// Scales, mins and zeros are of type T.
#pragma once

#include "../common/ptx.cuh"

constexpr int kTile = 16;
constexpr int kStep = 64;

enum class Format { kDense, kW4, kW8, kCodebook };

constexpr uint32_t kHasMin = 1;      // W8: scales come with mins
constexpr uint32_t kGroup16 = 2;     // W8: sixteen inputs share a scale, not thirty-two
constexpr uint32_t kOutF32 = 4;      // out is f32, not T
constexpr uint32_t kAccumulate = 8;  // adds to out, which is f32
constexpr uint32_t kOutVectors = 16;  // rows of out begin at multiples of 16 bytes
constexpr uint32_t kHasZero = 32;     // W4, W8: what lies beside scales are zeros, not mins

// One of up to three linears that read the same x.
struct LinearPart {
    const void *codes;
    const void *scales;
    const float *codebook;  // sixteen, or null
    const float *bias;      // [N], or null
    void *out;              // [T,N]
    uint32_t num_outputs;
    uint32_t num_tiles;
    uint32_t first_block;  // of those that share this launch
    uint32_t flags;
    uint32_t offset;
    uint32_t pad;
};

constexpr int kMaxParts = 3;

struct LinearParams {
    LinearPart parts[kMaxParts];
    const void *x;  // [T,K] of type T
    uint32_t num_rows;
    uint32_t num_inputs;
    uint32_t num_steps;
    uint32_t num_parts;
    uint32_t x_is_aligned;  // rows of x begin at multiples of 16 bytes; only dense weights do without
    uint32_t pad;
};

__device__ __forceinline__ const LinearPart &part_of(const LinearParams &p, uint32_t block) {
    uint32_t part = 0;
    for (uint32_t i = 1; i < p.num_parts; ++i) part = block >= p.parts[i].first_block ? i : part;
    return p.parts[part];
}

template <Format kFormat>
constexpr int kNumLoads = kFormat == Format::kDense ? 4 : kFormat == Format::kW8 ? 2 : 1;
template <Format kFormat>
constexpr int kMaxScaleWords = kFormat == Format::kW8 ? 8 : kFormat == Format::kW4 ? 4 : 2;

// What a lane has of a step of a tile, as it lies in memory.
template <Format kFormat> struct PackedStep {
    uint4 codes[kNumLoads<kFormat>];
    uint32_t scales[kMaxScaleWords<kFormat>];
};

// The same as operands of four mma, and, of codebooks, what to multiply the products with.
template <Format kFormat> struct Fragments {
    uint32_t a[4][4];
    float absmax[2];
};

__device__ __forceinline__ uint32_t word_of(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}
template <int kNum> __device__ __forceinline__ void put4(uint32_t (&words)[kNum], int at, const uint4 &v) {
    words[at] = v.x;
    words[at + 1] = v.y;
    words[at + 2] = v.z;
    words[at + 3] = v.w;
}
template <int kNum> __device__ __forceinline__ void put2(uint32_t (&words)[kNum], const uint2 &v) {
    words[0] = v.x;
    words[1] = v.y;
}

template <Format kFormat, bool kOnce>
__device__ __forceinline__ void load_step(PackedStep<kFormat> &to, const LinearPart &part, uint32_t tile,
                                          uint32_t step, uint32_t num_steps) {
    constexpr int kLoads = kNumLoads<kFormat>;
    const size_t at = static_cast<size_t>(tile) * num_steps + step;
    const uint4 *codes = static_cast<const uint4 *>(part.codes) + at * (kLoads * kWarpSize) + lane_index();
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
        to.codes[i] = kOnce ? load_once_16(codes + i * kWarpSize) : __ldg(codes + i * kWarpSize);
    }
    // Four lanes read the same scales, the eight groups of them neighbours.
    const size_t row = at * 8 + lane_index() / 4;
    if constexpr (kFormat == Format::kW4) {
        put4(to.scales, 0, __ldg(static_cast<const uint4 *>(part.scales) + row));
    } else if constexpr (kFormat == Format::kCodebook) {
        put2(to.scales, __ldg(static_cast<const uint2 *>(part.scales) + row));
    } else if constexpr (kFormat == Format::kW8) {
        const uint32_t kind = part.flags & (kHasMin | kGroup16);
        if (kind == 0) {
            put2(to.scales, __ldg(static_cast<const uint2 *>(part.scales) + row));
        } else if (kind == (kHasMin | kGroup16)) {
            put4(to.scales, 0, __ldg(static_cast<const uint4 *>(part.scales) + 2 * row));
            put4(to.scales, 4, __ldg(static_cast<const uint4 *>(part.scales) + 2 * row + 1));
        } else {
            put4(to.scales, 0, __ldg(static_cast<const uint4 *>(part.scales) + row));
        }
    }
}

__device__ __forceinline__ uint32_t both_low(uint32_t word) { return __byte_perm(word, 0, 0x1010); }
__device__ __forceinline__ uint32_t both_high(uint32_t word) { return __byte_perm(word, 0, 0x3232); }

// Pair s of eight 4-bit codes as numbers of type T. A code in the mantissa's last bits of a power of
// two is that power plus the code; what is subtracted again leaves the code, exactly.
template <typename T> __device__ __forceinline__ uint32_t codes4_pair(uint32_t word, int s);
template <> __device__ __forceinline__ uint32_t codes4_pair<f16>(uint32_t word, int s) {
    const uint32_t shifted = s < 2 ? word : word >> 8;
    if (s % 2 == 0) return sub2<f16>((shifted & 0x000f000fu) | 0x64006400u, 0x64006400u);
    // 1024 + 16 code, times 1/16, minus 64.
    return fma2<f16>((shifted & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, 0xd400d400u);
}
template <> __device__ __forceinline__ uint32_t codes4_pair<bf16>(uint32_t word, int s) {
    return sub2<bf16>(((word >> (4 * s)) & 0x000f000fu) | 0x43004300u, 0x43004300u);
}

// What is subtracted from 8-bit codes, as codes8_pair takes it.
template <typename T> __device__ __forceinline__ uint32_t offset_pair(uint32_t offset);
template <> __device__ __forceinline__ uint32_t offset_pair<f16>(uint32_t offset) {
    return (0x6400u | offset) * 0x00010001u;
}
template <> __device__ __forceinline__ uint32_t offset_pair<bf16>(uint32_t offset) {
    return pack2<bf16>(static_cast<float>(offset), static_cast<float>(offset));
}
// Two neighbours of four 8-bit codes minus the offset, exactly.
template <typename T>
__device__ __forceinline__ uint32_t codes8_pair(uint32_t word, bool second, uint32_t offset);
template <>
__device__ __forceinline__ uint32_t codes8_pair<f16>(uint32_t word, bool second, uint32_t offset) {
    return sub2<f16>(__byte_perm(word, 0x64646464u, second ? 0x4342 : 0x4140), offset);
}
template <>
__device__ __forceinline__ uint32_t codes8_pair<bf16>(uint32_t word, bool second, uint32_t offset) {
    // Seven bits fit beside the power of two: a nibble at a time.
    const uint32_t codes = __byte_perm(word, 0, second ? 0x4342 : 0x4140);
    const uint32_t low = sub2<bf16>((codes & 0x000f000fu) | 0x43004300u, 0x43004300u);
    const uint32_t high = sub2<bf16>(((codes >> 4) & 0x000f000fu) | 0x43004300u, 0x43004300u);
    return sub2<bf16>(fma2<bf16>(high, 0x41804180u, low), offset);
}

// scale * code + min or, with a zero in its place, scale * (code - zero): small integers, whose difference
// is exact.
template <typename T>
__device__ __forceinline__ uint32_t scaled(uint32_t code, uint32_t scale, uint32_t min, bool has_zero) {
    return has_zero ? mul2<T>(sub2<T>(code, min), scale) : fma2<T>(code, scale, min);
}

// A codebook as pairs: 256 x 32 words, of which a lane reads its own column, so that 32 lanes never
// meet in a bank.
constexpr int kPairTableBytes = 256 * kWarpSize * 4;
template <typename T> __device__ __forceinline__ void fill_pair_table(uint4 *table, const float *codebook) {
    for (uint32_t i = threadIdx.x; i < 256 * 8; i += blockDim.x) {
        const uint32_t pair = pack2<T>(__ldg(codebook + i / 8 % 16), __ldg(codebook + i / 8 / 16));
        table[i] = make_uint4(pair, pair, pair, pair);
    }
}

template <typename T, Format kFormat>
__device__ __forceinline__ void dequantize(Fragments<kFormat> &to, const PackedStep<kFormat> &from,
                                           const LinearPart &part, const uint32_t *pair_table) {
    if constexpr (kFormat == Format::kDense) {
#pragma unroll
        for (int j = 0; j < 4; ++j) put4(to.a[j], 0, from.codes[j]);
    } else if constexpr (kFormat == Format::kW4) {
        const bool has_zero = (part.flags & kHasZero) != 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint32_t word = word_of(from.codes[0], j);
#pragma unroll
            for (int s = 0; s < 4; ++s) {
                const uint32_t scales = from.scales[s % 2 * 2 + j / 2];
                to.a[j][s] = scaled<T>(codes4_pair<T>(word, s), both_low(scales), both_high(scales), has_zero);
            }
        }
    } else if constexpr (kFormat == Format::kW8) {
        const bool has_min = (part.flags & kHasMin) != 0, group16 = (part.flags & kGroup16) != 0;
        const bool has_zero = (part.flags & kHasZero) != 0;
        // Of the two groups of 16 in a half of the step, by the lane's inputs.
        const bool in_second = lane_index() % 4 >= 2;
        uint32_t scale[2][2], min[2][2] = {};  // of rows and halves of the step
#pragma unroll
        for (int at = 0; at < 4; ++at) {
            const int row = at / 2, half = at % 2;
            // Chosen among values, never among places: the words stay in registers.
            const uint32_t words[4] = {from.scales[row], from.scales[at], from.scales[2 * at],
                                       from.scales[2 * at + 1]};
            if (has_min) {
                const uint32_t of_group16 = in_second ? words[3] : words[2];
                const uint32_t scales = group16 ? of_group16 : words[1];
                scale[row][half] = both_low(scales);
                min[row][half] = both_high(scales);
            } else {
                const bool is_high = group16 ? in_second : half == 1;
                scale[row][half] = __byte_perm(group16 ? words[1] : words[0], 0, is_high ? 0x3232 : 0x1010);
            }
        }
        const uint32_t offset = offset_pair<T>(part.offset);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const uint32_t word = word_of(from.codes[j / 2], j % 2 * 2 + row);
                const uint32_t s = scale[row][j / 2], m = min[row][j / 2];
                to.a[j][row] = scaled<T>(codes8_pair<T>(word, false, offset), s, m, has_zero);
                to.a[j][row + 2] = scaled<T>(codes8_pair<T>(word, true, offset), s, m, has_zero);
            }
        }
    } else {
        const uint32_t *column = pair_table + lane_index();
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const uint32_t word = word_of(from.codes[0], j);
#pragma unroll
            for (int s = 0; s < 4; ++s) to.a[j][s] = column[((word >> (8 * s)) & 0xff) * kWarpSize];
        }
        to.absmax[0] = __uint_as_float(from.scales[0]);
        to.absmax[1] = __uint_as_float(from.scales[1]);
    }
}

// sums(i,c)[16,8] += W(i)[16,64] x(c)^T[64,8]; `x`: the lane's inputs of either half of the step.
// Products that depend on each other are as far apart as there are others.
template <typename T, Format kFormat, int kTiles, int kColumns, typename Sums>
__device__ __forceinline__ void multiply(const Sums &sums, const Fragments<kFormat> (&w)[kTiles],
                                         const uint4 (&x)[kColumns][2]) {
    // The codebook's absmax is applied to sums of a step: in f32, and with fewer instructions.
    [[maybe_unused]] float own[kTiles][kColumns][4] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int at = 0; at < kTiles * kColumns; ++at) {
            const int i = at / kColumns, c = at % kColumns;
            const uint32_t b[2] = {word_of(x[c][j / 2], j % 2 * 2), word_of(x[c][j / 2], j % 2 * 2 + 1)};
            if constexpr (kFormat == Format::kCodebook) {
                mma_m16n8k16<T>(own[i][c], w[i].a[j], b);
            } else {
                mma_m16n8k16<T>(sums(i, c), w[i].a[j], b);
            }
        }
    }
    if constexpr (kFormat == Format::kCodebook) {
#pragma unroll
        for (int at = 0; at < kTiles * kColumns; ++at) {
            const int i = at / kColumns, c = at % kColumns;
#pragma unroll
            for (int r = 0; r < 4; ++r) sums(i, c)[r] = fmaf(own[i][c][r], w[i].absmax[r / 2], sums(i, c)[r]);
        }
    }
}

// Eight inputs of a row of x; zeros where there is nothing, which is not read.
template <typename T>
__device__ __forceinline__ uint4 load_x8(const LinearParams &p, uint32_t row, uint32_t input) {
    uint4 value = make_uint4(0, 0, 0, 0);
    const T *x = static_cast<const T *>(p.x) + static_cast<size_t>(row) * p.num_inputs + input;
    if (row < p.num_rows && input < p.num_inputs) value = __ldg(reinterpret_cast<const uint4 *>(x));
    return value;
}
// The same where rows are not aligned, which only dense weights allow: one at a time.
template <typename T>
__device__ __forceinline__ uint4 gather_x8(const LinearParams &p, uint32_t row, uint32_t input) {
    uint32_t words[4] = {0, 0, 0, 0};
    const uint16_t *x = static_cast<const uint16_t *>(p.x) + static_cast<size_t>(row) * p.num_inputs + input;
#pragma unroll
    for (uint32_t i = 0; i < 8; ++i) {
        if (row < p.num_rows && input + i < p.num_inputs) {
            words[i / 2] |= static_cast<uint32_t>(x[i]) << (16 * (i % 2));
        }
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

template <typename T>
__device__ __forceinline__ void store_output(const LinearPart &part, uint32_t row, uint32_t output,
                                             float value) {
    const size_t at = static_cast<size_t>(row) * part.num_outputs + output;
    if (part.bias != nullptr) value += __ldg(part.bias + output);
    if ((part.flags & kOutF32) != 0) {
        float *out = static_cast<float *>(part.out) + at;
        *out = (part.flags & kAccumulate) != 0 ? *out + value : value;
    } else {
        static_cast<T *>(part.out)[at] = from_f32<T>(value);
    }
}
