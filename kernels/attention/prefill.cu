// out[t,h,:] = sum_j softmax_j(scale * q[t,h,:].k[j,g,:]) v[j,g,:], j <= position(t), g = h's KV head, for
// chunks of prompts, whose own keys and values are in the cache already.
//
// q:[T, heads, D] and out:[T, heads, D] of 16 bits, K and V in pages (kv.cuh). An item is up to 64
// consecutive rows of a sequence. A block of threads is an item and one or two heads that share a KV
// head, a warp sixteen rows of a head (FlashAttention-2, Dao 2023): scores and weights stay in
// registers, tiles of 64 positions pass through shared memory, keys while values are multiplied and
// the other way round. Tiles begin at multiples of 64, so a row's sums are the same in any chunking.
#include "kv.cuh"

struct PrefillItem {
    uint32_t first_row;
    uint32_t num_rows;  // 0: padding
    uint32_t position;  // of the first row
    uint32_t first_block;
};

struct PrefillParams {
    PagedKv kv;
    const void *q;
    void *out;
    const PrefillItem *items;
    const uint32_t *block_tables;
    uint32_t num_heads;
    uint32_t window;  // 0: all
    uint32_t is_bf16;
    uint32_t q_stride;
    uint32_t out_stride;
    float scale;
};

constexpr int kTile = 64;
constexpr int kRowWarps = 4;
constexpr int kTileBlocks = kTile / kBlockTokens;
static_assert(kTileBlocks == kRowWarps, "a warp of each head copies a page");

template <typename Kv, int kHeadDim> struct PrefillShape {
    static constexpr int kTileBytes = kTile * Rows<Kv, kHeadDim>::kStride;
    // Wide heads leave no registers for the queries.
    static constexpr bool kQueriesInShared = kHeadDim > 128;
    static constexpr int kMaxThreads = (kQueriesInShared ? 1 : 2) * kRowWarps * kWarpSize;
};

// Keys as the right operand: sixteen columns of the step, 16 positions (two of eight).
template <typename Kv, int kStride>
__device__ __forceinline__ void load_keys(uint32_t (&b)[2][2], const unsigned char *keys, int step) {
    const int lane = lane_index();
    if constexpr (sizeof(Kv) == 1) {
        uint32_t bytes[2];
        ldmatrix_x2(bytes, keys + lane % 16 * kStride + step * 16);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            b[i][0] = e4m3_pair(bytes[i], 0x1404u);
            b[i][1] = e4m3_pair(bytes[i], 0x3424u);
        }
    } else {
        uint32_t all[4];
        ldmatrix_x4(all, keys + (lane / 16 * 8 + lane % 8) * kStride + (step * 2 + lane / 8 % 2) * 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = all[i];
    }
}
// Values: 16 positions, sixteen columns of the step (two of eight; for bytes, the even and the odd).
template <typename Kv, int kStride>
__device__ __forceinline__ void load_values(uint32_t (&b)[2][2], const unsigned char *values, int step) {
    const int lane = lane_index();
    if constexpr (sizeof(Kv) == 1) {
        uint32_t bytes[2];
        ldmatrix_x2_trans(bytes, values + lane % 16 * kStride + step * 16);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            b[0][i] = e4m3_pair(bytes[i], 0x2404u);
            b[1][i] = e4m3_pair(bytes[i], 0x3414u);
        }
    } else {
        uint32_t all[4];
        ldmatrix_x4_trans(all, values + lane % 16 * kStride + (step * 2 + lane / 16) * 16);
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i / 2][i % 2] = all[i];
    }
}

template <typename Kv, int kHeadDim> __device__ __forceinline__ void prefill(const PrefillParams &p) {
    using Math = typename MathOf<Kv>::type;
    using Shape = PrefillShape<Kv, kHeadDim>;
    using Row = Rows<Kv, kHeadDim>;
    constexpr int kSteps = kHeadDim / 16;
    // The last items of a prompt see most: they begin first.
    const PrefillItem item = p.items[gridDim.y - 1 - blockIdx.y];
    if (item.num_rows == 0) return;
    const int lane = lane_index(), warp = warp_index(), g = lane / 4, t = lane % 4;
    const uint32_t heads_here = blockDim.x / (kRowWarps * kWarpSize);
    const uint32_t head = blockIdx.x * heads_here + warp / kRowWarps;
    const uint32_t kv_head = head / (p.num_heads / p.kv.num_kv_heads);
    const uint32_t first_row = warp % kRowWarps * 16;  // within the item
    const bool is_active = first_row < item.num_rows;

    // Positions that some row sees.
    const uint32_t end = item.position + item.num_rows;
    const uint32_t begin = p.window != 0 && item.position >= p.window ? item.position + 1 - p.window : 0;

    unsigned char *keys = dynamic_shared(), *values = keys + Shape::kTileBytes;
    // A warp copies one page of a tile, or half of it. Its block is looked up a tile ahead.
    const uint32_t page = warp % kTileBlocks;
    const uint32_t *table = p.block_tables + item.first_block;
    const auto block_of = [&](uint32_t tile) {
        const uint32_t start = tile + page * kBlockTokens;
        return start < end && start + kBlockTokens > begin ? __ldg(table + start / kBlockTokens) : 0;
    };
    const auto copy = [&](unsigned char *to, uint32_t block, bool of_values, uint32_t tile) {
        const auto *from = reinterpret_cast<const unsigned char *>(
            page_of<Kv>(p.kv, block, kv_head, kHeadDim) + (of_values ? kBlockTokens * kHeadDim : 0));
        const uint32_t start = tile + page * kBlockTokens;
        for (int unit = warp / kTileBlocks * kWarpSize + lane; unit < kBlockTokens * Row::kUnits;
             unit += heads_here * kWarpSize) {
            const uint32_t at = unit / Row::kUnits, position = start + at;
            // What nobody wrote might be NaN, and 0 * NaN is not 0.
            const bool valid = position >= begin && position < end;
            cp_async_16(to + (page * kBlockTokens + at) * Row::kStride + unit % Row::kUnits * 16,
                        from + unit * 16, valid);
        }
        cp_async_commit();
    };

    const uint32_t first_tile = begin / kTile * kTile;
    uint32_t block = block_of(first_tile);
    copy(keys, block, false, first_tile);

    // The left operand: rows g and g + 8, rows beyond the item are zero.
    uint32_t q[Shape::kQueriesInShared ? 1 : kSteps][4];
    const auto load_queries = [&](uint32_t(&a)[4], int step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const uint32_t row = first_row + g + i % 2 * 8;
            const size_t at = static_cast<size_t>(item.first_row + row) * p.q_stride + head * kHeadDim +
                              column_of<Kv>(step, i / 2);
            a[i] = row < item.num_rows ? load_pair<Math>(p.q, at, p.is_bf16) : 0u;
        }
    };
    // As the threads that read it wrote it: no barrier, no conflicts.
    uint4 *own_queries = reinterpret_cast<uint4 *>(values + Shape::kTileBytes) +
                         warp * (kSteps * kWarpSize) + lane;
    if constexpr (Shape::kQueriesInShared) {
        for (int step = 0; step < kSteps; ++step) {
            load_queries(q[0], step);
            own_queries[step * kWarpSize] = make_uint4(q[0][0], q[0][1], q[0][2], q[0][3]);
        }
    } else {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) load_queries(q[step], step);
    }

    // For rows g and g + 8, of scores before they are scaled. Weights are powers of two.
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    float sums[2 * kSteps][4] = {};
    const float scale = p.scale * 1.44269504f;
    const uint32_t warp_position = item.position + first_row;
    for (uint32_t tile = first_tile; tile < end; tile += kTile) {
        const uint32_t next_block = block_of(tile + kTile);
        cp_async_wait<0>();
        __syncthreads();  // the keys are there, and the last values done with
        copy(values, block, true, tile);
        // Warp-uniform: rows that see nothing of a tile leave no trace of it.
        const bool sees = is_active && tile <= warp_position + 15;
        float s[kTile / 8][4] = {};
        if (sees) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                uint32_t a[4];
                if constexpr (Shape::kQueriesInShared) {
                    const uint4 own = own_queries[step * kWarpSize];
                    a[0] = own.x, a[1] = own.y, a[2] = own.z, a[3] = own.w;
                } else {
#pragma unroll
                    for (int i = 0; i < 4; ++i) a[i] = q[step][i];
                }
#pragma unroll
                for (int n = 0; n < kTile / 16; ++n) {
                    uint32_t b[2][2];
                    load_keys<Kv, Row::kStride>(b, keys + n * 16 * Row::kStride, step);
                    mma_m16n8k16<Math>(s[2 * n], a, b[0]);
                    mma_m16n8k16<Math>(s[2 * n + 1], a, b[1]);
                }
            }
        }
        cp_async_wait<0>();
        __syncthreads();  // the values are there, and the keys done with
        if (tile + kTile < end) copy(keys, next_block, false, tile + kTile);
        block = next_block;
        if (!sees) continue;

        const bool sees_all = tile + kTile - 1 <= warp_position &&
                              (p.window == 0 || warp_position + 15 < tile + p.window);
        float scaled[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t position = warp_position + g + half * 8;
            float most = largest[half];
#pragma unroll
            for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const uint32_t j = tile + n * 8 + 2 * t + i;
                    const bool seen =
                        sees_all || (j <= position && (p.window == 0 || position - j < p.window));
                    float &score = s[n][2 * half + i];
                    score = seen ? score : -INFINITY;
                    most = fmaxf(most, score);
                }
            }
            most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 1));
            most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 2));
            // A row that has seen nothing yet: all its weights are zero.
            const float base = most == -INFINITY ? 0.0f : most * scale;
            scaled[half] = exp2_approx(fmaf(largest[half], scale, -base));
            largest[half] = most;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < kTile / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float &score = s[n][2 * half + i];
                    score = exp2_approx(fmaf(score, scale, -base));
                    sum += score;
                }
            }
            total[half] = total[half] * scaled[half] + sum;
        }
#pragma unroll
        for (int n = 0; n < 2 * kSteps; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[n][i] *= scaled[i / 2];
        }
#pragma unroll
        for (int k = 0; k < kTile / 16; ++k) {
            const uint32_t a[4] = {
                pack2<Math>(s[2 * k][0], s[2 * k][1]), pack2<Math>(s[2 * k][2], s[2 * k][3]),
                pack2<Math>(s[2 * k + 1][0], s[2 * k + 1][1]),
                pack2<Math>(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                uint32_t b[2][2];
                load_values<Kv, Row::kStride>(b, values + k * 16 * Row::kStride, step);
                mma_m16n8k16<Math>(sums[2 * step], a, b[0]);
                mma_m16n8k16<Math>(sums[2 * step + 1], a, b[1]);
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
        total[half] += __shfl_xor_sync(kFullWarp, total[half], 1);
        total[half] += __shfl_xor_sync(kFullWarp, total[half], 2);
        const uint32_t row = first_row + g + half * 8;
        if (row >= item.num_rows) continue;
        const size_t start = static_cast<size_t>(item.first_row + row) * p.out_stride + head * kHeadDim;
        const float inverse = 1.0f / total[half];
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const float *even = &sums[2 * step][2 * half], *odd = &sums[2 * step + 1][2 * half];
            constexpr bool kBytes = sizeof(Kv) == 1;
            store_pair(p.out, start + column_of<Kv>(step, 0), even[0] * inverse,
                       (kBytes ? odd[0] : even[1]) * inverse, p.is_bf16);
            store_pair(p.out, start + column_of<Kv>(step, 1), (kBytes ? even[1] : odd[0]) * inverse,
                       odd[1] * inverse, p.is_bf16);
        }
    }
}

#define WEFT_PREFILL(name, Kv, head_dim)                                                       \
    WEFT_KERNEL_BLOCKS(prefill_##name##_##head_dim, PrefillParams,                             \
                       (PrefillShape<Kv, head_dim>::kMaxThreads), (head_dim < 64 ? 2 : 1)) {  \
        prefill<Kv, head_dim>(p);                                                              \
    }
#define WEFT_PREFILL_HEADS(name, Kv) \
    WEFT_PREFILL(name, Kv, 16)       \
    WEFT_PREFILL(name, Kv, 32)       \
    WEFT_PREFILL(name, Kv, 64)       \
    WEFT_PREFILL(name, Kv, 80)       \
    WEFT_PREFILL(name, Kv, 96)       \
    WEFT_PREFILL(name, Kv, 128)      \
    WEFT_PREFILL(name, Kv, 256)

WEFT_PREFILL_HEADS(f16, f16)
WEFT_PREFILL_HEADS(bf16, bf16)
WEFT_PREFILL_HEADS(e4m3, e4m3)
