// out[t,h,:] = sum_j softmax_j(scale * q[t,h,:].k[j,g,:]) v[j,g,:], j <= position(t), g = h's KV head, for
// sequences with one row each.
//
// q:[T, heads, D] and out:[T, heads, D] of 16 bits, K and V in pages (kv.cuh). A block of threads is a
// split of a sequence's pages and up to eight heads that share a KV head; its warps take pages in
// turn, each with its own copies in flight, and meet at the end. Transposed, all fits the tensor cores:
//   S^T[16 positions, 8 heads] = K[16, D] Q^T[D, 8],  O^T[D, 8 heads] += V^T[D, 16] P^T[16, 8]
// The softmax is online (Milakov & Gimelshein 2018), splits are combined in their order (Flash-Decoding,
// Dao et al. 2023). Where the splits are depends on the context and the launch's number of splits.
#include "kv.cuh"

struct DecodeParams {
    PagedKv kv;
    const void *q;
    void *out;
    const uint32_t *rows;
    const uint32_t *contexts;  // with the row's own token; 0: padding
    const uint32_t *first_blocks;
    const uint32_t *block_tables;
    float *sums;     // [sequences, heads, splits, D]: not yet divided
    float2 *scales;  // [sequences, heads, splits]: largest score in powers of two, sum of exponentials
    uint32_t num_heads;
    uint32_t num_splits;
    uint32_t window;  // 0: all
    uint32_t is_bf16;
    uint32_t q_stride;
    uint32_t out_stride;
    uint32_t head_dim;
    float scale;
};

constexpr int kHeadTile = 8;
constexpr int kMinSplitBlocks = 8;

struct Splits {
    uint32_t first_position;  // seen by the row
    uint32_t first_block;
    uint32_t end_block;
    uint32_t blocks;  // of a split
    uint32_t num;
};

__device__ __forceinline__ Splits splits_of(const DecodeParams &p, uint32_t context) {
    Splits s;
    s.first_position = p.window != 0 && context > p.window ? context - p.window : 0;
    s.first_block = s.first_position / kBlockTokens;
    s.end_block = (context + kBlockTokens - 1) / kBlockTokens;
    const uint32_t num_blocks = s.end_block - s.first_block;
    s.blocks = max((num_blocks + p.num_splits - 1) / p.num_splits, static_cast<uint32_t>(kMinSplitBlocks));
    s.num = (num_blocks + s.blocks - 1) / s.blocks;
    return s;
}

// What a warp keeps in shared memory, and how many pages ahead it reads.
template <typename Kv, int kHeadDim> struct DecodeShape {
    static constexpr int kWarps = kHeadDim > 128 ? 2 : 4;
    static constexpr int kStageBytes = 2 * kBlockTokens * Rows<Kv, kHeadDim>::kStride;
    static constexpr int kFitting = 72 * 1024 / (kWarps * kStageBytes);
    static constexpr int kStages = kFitting < 2 ? 2 : kFitting > 4 ? 4 : kFitting;
    // Sums of the warps, for the end.
    static constexpr int kSumStride = kHeadDim + 4;
    static constexpr int kSumFloats = kWarps * kHeadTile * kSumStride;
};

// Rows of a page of shared memory as the left operand: 16 positions, 16 columns of the step.
template <typename Kv, int kStride>
__device__ __forceinline__ void load_keys(uint32_t (&a)[4], const unsigned char *keys, int step) {
    const int lane = lane_index();
    if constexpr (sizeof(Kv) == 1) {
        uint32_t bytes[2];
        ldmatrix_x2(bytes, keys + lane % 16 * kStride + step * 16);
        a[0] = e4m3_pair(bytes[0], 0x1404u);
        a[1] = e4m3_pair(bytes[1], 0x1404u);
        a[2] = e4m3_pair(bytes[0], 0x3424u);
        a[3] = e4m3_pair(bytes[1], 0x3424u);
    } else {
        ldmatrix_x4(a, keys + lane % 16 * kStride + (step * 2 + lane / 16) * 16);
    }
}
// Transposed: 16 columns of the step, 16 positions. Rows g and g + 8 are columns g and g + 8 of a
// step, or 2g and 2g + 1 for bytes.
template <typename Kv, int kStride>
__device__ __forceinline__ void load_values(uint32_t (&a)[4], const unsigned char *values, int step) {
    const int lane = lane_index();
    if constexpr (sizeof(Kv) == 1) {
        uint32_t bytes[2];
        ldmatrix_x2_trans(bytes, values + lane % 16 * kStride + step * 16);
        a[0] = e4m3_pair(bytes[0], 0x2404u);
        a[1] = e4m3_pair(bytes[0], 0x3414u);
        a[2] = e4m3_pair(bytes[1], 0x2404u);
        a[3] = e4m3_pair(bytes[1], 0x3414u);
    } else {
        const int row = lane / 16 * 8 + lane % 8, unit = step * 2 + lane / 8 % 2;
        ldmatrix_x4_trans(a, values + row * kStride + unit * 16);
    }
}

template <typename Kv, int kHeadDim> __device__ __forceinline__ void decode(const DecodeParams &p) {
    using Math = typename MathOf<Kv>::type;
    using Shape = DecodeShape<Kv, kHeadDim>;
    using Row = Rows<Kv, kHeadDim>;
    constexpr int kSteps = kHeadDim / 16, kWarps = Shape::kWarps, kStages = Shape::kStages;
    const uint32_t sequence = blockIdx.z;
    const uint32_t context = p.contexts[sequence];
    if (context == 0) return;
    const Splits splits = splits_of(p, context);
    const uint32_t split = blockIdx.x;
    if (split >= splits.num) return;

    const uint32_t group = p.num_heads / p.kv.num_kv_heads;
    const uint32_t tiles = (group + kHeadTile - 1) / kHeadTile;
    const uint32_t kv_head = blockIdx.y / tiles, in_group = blockIdx.y % tiles * kHeadTile;
    const uint32_t first_head = kv_head * group + in_group;
    const uint32_t num_heads = min(group - in_group, static_cast<uint32_t>(kHeadTile));
    const uint32_t row = p.rows[sequence];
    const int lane = lane_index(), warp = warp_index(), g = lane / 4, t = lane % 4;
    unsigned char *stages = dynamic_shared() + warp * (kStages * Shape::kStageBytes);
    const uint32_t *table = p.block_tables + p.first_blocks[sequence];

    // Pages warp, warp + kWarps, ... of the split.
    const uint32_t end = min(splits.first_block + (split + 1) * splits.blocks, splits.end_block);
    uint32_t next = splits.first_block + split * splits.blocks + warp;  // to be copied
    uint32_t next_block = next < end ? __ldg(table + next) : 0;
    const auto copy_next = [&](int stage) {
        if (next < end) {
            const auto *page = reinterpret_cast<const unsigned char *>(
                page_of<Kv>(p.kv, next_block, kv_head, kHeadDim));
            unsigned char *to = stages + stage * Shape::kStageBytes;
#pragma unroll
            for (int i = 0; i < kHeadDim * static_cast<int>(sizeof(Kv)) / 16; ++i) {
                const int unit = i * kWarpSize + lane, at = unit / Row::kUnits;
                const uint32_t position = next * kBlockTokens + at % kBlockTokens;
                // What nobody wrote might be NaN, and 0 * NaN is not 0.
                const bool valid = position >= splits.first_position && position < context;
                cp_async_16(to + at * Row::kStride + unit % Row::kUnits * 16, page + unit * 16, valid);
            }
            next += kWarps;
            if (next < end) next_block = __ldg(table + next);
        }
        cp_async_commit();
    };
#pragma unroll
    for (int stage = 0; stage < kStages - 1; ++stage) copy_next(stage);

    // Q^T: column g is a head; those beyond the group are zero.
    uint32_t q[kSteps][2];
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const size_t at = static_cast<size_t>(row) * p.q_stride + (first_head + g) * kHeadDim;
            const bool is_head = static_cast<uint32_t>(g) < num_heads;
            q[step][half] = is_head ? load_pair<Math>(p.q, at + column_of<Kv>(step, half), p.is_bf16) : 0u;
        }
    }

    // For heads 2t and 2t + 1. Scores count in powers of two.
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    float sums[kSteps][4] = {};
    const float scale = p.scale * 1.44269504f;
    int stage = 0;
    for (uint32_t at = splits.first_block + split * splits.blocks + warp; at < end; at += kWarps) {
        cp_async_wait<kStages - 2>();
        __syncwarp();
        copy_next(stage == 0 ? kStages - 1 : stage - 1);
        const unsigned char *keys = stages + stage * Shape::kStageBytes;
        const unsigned char *values = keys + kBlockTokens * Row::kStride;
        stage = stage + 1 == kStages ? 0 : stage + 1;

        float scores[2][4] = {};  // two chains of sums
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            uint32_t a[4];
            load_keys<Kv, Row::kStride>(a, keys, step);
            mma_m16n8k16<Math>(scores[step % 2], a, q[step]);
        }
        float s[4], scaled[2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint32_t position = at * kBlockTokens + g + i / 2 * 8;
            const bool seen = position >= splits.first_position && position < context;
            s[i] = seen ? (scores[0][i] + scores[1][i]) * scale : -INFINITY;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float most = fmaxf(s[i], s[i + 2]);
#pragma unroll
            for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
                most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, lanes));
            }
            most = fmaxf(most, largest[i]);
            scaled[i] = exp2_approx(largest[i] - most);
            largest[i] = most;
            s[i] = exp2_approx(s[i] - most);
            s[i + 2] = exp2_approx(s[i + 2] - most);
            total[i] = total[i] * scaled[i] + (s[i] + s[i + 2]);
        }
        const uint32_t weights[2] = {movmatrix_trans(pack2<Math>(s[0], s[1])),
                                     movmatrix_trans(pack2<Math>(s[2], s[3]))};
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[step][i] *= scaled[i % 2];
            uint32_t a[4];
            load_values<Kv, Row::kStride>(a, values, step);
            mma_m16n8k16<Math>(sums[step], a, weights);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int lanes = 4; lanes < kWarpSize; lanes *= 2) {
            total[i] += __shfl_xor_sync(kFullWarp, total[i], lanes);
        }
    }

    // The warps meet where the pages were.
    cp_async_wait<0>();
    __syncthreads();
    float *all = reinterpret_cast<float *>(dynamic_shared());
    float2 *all_scales = reinterpret_cast<float2 *>(all + Shape::kSumFloats);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int column = 16 * step + (sizeof(Kv) == 1 ? 2 * g + i / 2 : g + i / 2 * 8);
            all[(warp * kHeadTile + 2 * t + i % 2) * Shape::kSumStride + column] = sums[step][i];
        }
    }
    if (g == 0) {
        all_scales[warp * kHeadTile + 2 * t] = make_float2(largest[0], total[0]);
        all_scales[warp * kHeadTile + 2 * t + 1] = make_float2(largest[1], total[1]);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < num_heads * kHeadDim; i += kWarps * kWarpSize) {
        const uint32_t head = i / kHeadDim, column = i % kHeadDim;
        float most = -INFINITY, sum = 0.0f, exponentials = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) most = fmaxf(most, all_scales[w * kHeadTile + head].x);
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            const float2 own = all_scales[w * kHeadTile + head];
            const float weight = exp2_approx(own.x - most);
            sum += weight * all[(w * kHeadTile + head) * Shape::kSumStride + column];
            exponentials += weight * own.y;
        }
        if (splits.num == 1) {
            const size_t to = static_cast<size_t>(row) * p.out_stride + (first_head + head) * kHeadDim + column;
            store_activation(p.out, to, sum / exponentials, p.is_bf16);
        } else {
            const size_t at = static_cast<size_t>(sequence * p.num_heads + first_head + head) * p.num_splits +
                              split;
            p.sums[at * kHeadDim + column] = sum;
            if (column == 0) p.scales[at] = make_float2(most, exponentials);
        }
    }
}

// A block of threads is a head of a sequence.
WEFT_KERNEL(decode_combine, DecodeParams, 256) {
    const uint32_t head = blockIdx.x, sequence = blockIdx.y;
    const uint32_t context = p.contexts[sequence];
    if (context == 0) return;
    const uint32_t num_splits = splits_of(p, context).num;
    if (num_splits == 1) return;
    const size_t at = static_cast<size_t>(sequence * p.num_heads + head) * p.num_splits;
    float most = -INFINITY;
    for (uint32_t s = 0; s < num_splits; ++s) most = fmaxf(most, p.scales[at + s].x);
    for (uint32_t column = threadIdx.x; column < p.head_dim; column += blockDim.x) {
        float sum = 0.0f, exponentials = 0.0f;
#pragma unroll 4
        for (uint32_t s = 0; s < num_splits; ++s) {
            const float2 own = p.scales[at + s];
            const float weight = exp2_approx(own.x - most);
            sum += weight * p.sums[(at + s) * p.head_dim + column];
            exponentials += weight * own.y;
        }
        const size_t to = static_cast<size_t>(p.rows[sequence]) * p.out_stride + head * p.head_dim + column;
        store_activation(p.out, to, sum / exponentials, p.is_bf16);
    }
}

#define WEFT_DECODE(name, Kv, head_dim)                                                       \
    WEFT_KERNEL(decode_##name##_##head_dim, DecodeParams,                                     \
                (DecodeShape<Kv, head_dim>::kWarps * kWarpSize)) {                            \
        decode<Kv, head_dim>(p);                                                              \
    }
#define WEFT_DECODE_HEADS(name, Kv) \
    WEFT_DECODE(name, Kv, 16)       \
    WEFT_DECODE(name, Kv, 32)       \
    WEFT_DECODE(name, Kv, 64)       \
    WEFT_DECODE(name, Kv, 80)       \
    WEFT_DECODE(name, Kv, 96)       \
    WEFT_DECODE(name, Kv, 128)      \
    WEFT_DECODE(name, Kv, 256)

WEFT_DECODE_HEADS(f16, f16)
WEFT_DECODE_HEADS(bf16, bf16)
WEFT_DECODE_HEADS(e4m3, e4m3)
