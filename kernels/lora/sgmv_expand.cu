// y_p[t,n] += sum_j (sum_s h_p[s,t,j]) * B_p[j,n]    h:[targets,splits,T,h_width] f32  B:[rank,N]  y:[T,N]
//
// Prefill, second half: pieces of at most 64 rows of one adapter, on tensor cores with rows as M and
// outputs as N. A row of h is divided by a power of two before it becomes 16 bits, and its sums are
// multiplied with it again: scales of int8 rows would else leave f16's range.
// Bound: bytes of y, read and written / bandwidth.
#include "tile.cuh"

struct SgmvExpandParams {
    const LoraPiece *pieces;
    const float *h;
    void *out[kMaxTargets];
    uint32_t sites[kMaxTargets];
    uint32_t num_outputs[kMaxTargets];
    uint32_t num_rows;
    uint32_t h_width;
    uint32_t num_splits;
    uint32_t h_bytes;  // of shared memory for h in 16 bits, a multiple of 16
    Dtype out_dtype;
    uint32_t pad;
};

constexpr uint32_t kRows = 64;
constexpr uint32_t kColumns = 128;
constexpr uint32_t kWarpColumns = kColumns / kTileWarps;
constexpr uint32_t kRanks = 32;  // of a step
// Tiles of columns of a block, one after the other, for which h is prepared once.
constexpr uint32_t kTiles = 2;
constexpr uint32_t kSumsWidth = kWarpColumns + 4;

// What lies behind h in shared memory.
template <typename T> struct Shared {
    T b[2][kRanks * kColumns];
    float sums[kTileWarps][16 * kSumsWidth];
    float factors[kRows];
};

// A row of h in shared memory: an odd number of 16 bytes, so that eight rows lie in different banks.
__device__ __forceinline__ uint32_t stride_of(uint32_t rank) { return (rank + 15) / 16 * 16 + 8; }

// Four numbers of a row of h: the parts of K added in order, zeros beyond the rank.
__device__ __forceinline__ float4 add_splits(const SgmvExpandParams &p, const float *h, uint32_t j,
                                             uint32_t rank) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (uint32_t split = 0; split < p.num_splits; ++split) {
        const size_t plane = size_t{split} * p.num_rows * p.h_width;
        const float4 part = *reinterpret_cast<const float4 *>(h + plane + j);
        sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
    }
    return make_float4(j < rank ? sum.x : 0.0f, j + 1 < rank ? sum.y : 0.0f, j + 2 < rank ? sum.z : 0.0f,
                       j + 3 < rank ? sum.w : 0.0f);
}

// h in 16 bits, and what each row was divided by. Two threads take a row.
template <typename T>
__device__ __forceinline__ void prepare_h(const SgmvExpandParams &p, const LoraPiece &piece, uint32_t rank,
                                          T *shared_h, float *factors) {
    const uint32_t t = threadIdx.x / 2, first = threadIdx.x % 2 * 4;
    const uint32_t padded = (rank + 15) / 16 * 16;
    const size_t row = size_t{blockIdx.z} * p.num_splits * p.num_rows + piece.first_row +
                       min(t, piece.num_rows - 1);
    const float *h = p.h + row * p.h_width;
    float largest = 0.0f;
    for (uint32_t j = first; j < rank; j += 8) {
        const float4 v = add_splits(p, h, j, rank);
        largest = fmaxf(largest, fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w))));
    }
    largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, 1));
    const uint32_t exponent = min(max(__float_as_uint(largest) >> 23, 1u), 253u);
    const float down = __uint_as_float((254 - exponent) << 23);
    if (first == 0) factors[t] = __uint_as_float(exponent << 23);
    for (uint32_t j = first; j < padded; j += 8) {
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (j < rank) v = add_splits(p, h, j, rank);
        const uint2 packed = {pack2<T>(v.x * down, v.y * down), pack2<T>(v.z * down, v.w * down)};
        *reinterpret_cast<uint2 *>(shared_h + t * stride_of(rank) + j) = packed;
    }
}

// y += the sums of a tile: through shared memory, so that a thread has eight columns of a row.
template <bool kAligned>
__device__ __forceinline__ void add_tile(const SgmvExpandParams &p, const LoraPiece &piece,
                                         uint32_t first_column, uint32_t width, const float (&d)[4][4][4], float *sums, const float *factors) {
    const uint32_t lane = lane_index();
#pragma unroll
    for (uint32_t m = 0; m < 4; ++m) {
        if (m * 16 >= piece.num_rows) break;
#pragma unroll
        for (uint32_t n = 0; n < 4; ++n) {
            float *to = sums + lane / 4 * kSumsWidth + n * 8 + lane % 4 * 2;
            *reinterpret_cast<float2 *>(to) = make_float2(d[m][n][0], d[m][n][1]);
            *reinterpret_cast<float2 *>(to + 8 * kSumsWidth) = make_float2(d[m][n][2], d[m][n][3]);
        }
        __syncwarp();
#pragma unroll
        for (uint32_t half = 0; half < 2; ++half) {
            const uint32_t row = half * 8 + lane / 4, t = m * 16 + row;
            const uint32_t column = first_column + lane % 4 * 8;
            if (t >= piece.num_rows || column >= width) continue;
            const float *from = sums + row * kSumsWidth + lane % 4 * 8;
            const float4 low = *reinterpret_cast<const float4 *>(from);
            const float4 high = *reinterpret_cast<const float4 *>(from + 4);
            const float factor = factors[t];
            const float add[8] = {low.x * factor,  low.y * factor,  low.z * factor,  low.w * factor,
                                  high.x * factor, high.y * factor, high.z * factor, high.w * factor};
            add8<kAligned>(p.out_dtype, p.out[blockIdx.z], piece.first_row + t, column, width, add);
        }
        __syncwarp();
    }
}

template <typename T, typename W, bool kAligned>
__device__ __forceinline__ void expand_tiles(const SgmvExpandParams &p, const LoraPiece &piece,
                                             const LoraSite &site) {
    T *const h = reinterpret_cast<T *>(dynamic_shared());
    Shared<T> &shared = *reinterpret_cast<Shared<T> *>(dynamic_shared() + p.h_bytes);
    const uint32_t width = p.num_outputs[blockIdx.z], rank = site.rank;
    const uint32_t first_column = blockIdx.x * kTiles * kColumns;
    const uint32_t num_tiles = min((width - first_column + kColumns - 1) / kColumns, kTiles);
    const uint32_t num_chunks = (rank + kRanks - 1) / kRanks, num_steps = num_tiles * num_chunks;
    const uint32_t lane = lane_index(), warp = warp_index();

    TileLoader<W, T, kColumns, kAligned> b;
    b.num_groups = b.kGroups;
    const auto begin = [&](uint32_t step) {
        const uint32_t first_rank = step % num_chunks * kRanks;
        b.is_there = 0;
#pragma unroll
        for (uint32_t group = 0; group < b.kGroups; ++group) {
            const uint32_t j = first_rank + b.row(group);
            b.rows[group] = row_of<W>(site.b, min(j, rank - 1), width);
            b.is_there |= uint32_t{j < rank} << group;
        }
        b.begin(shared.b[step % 2], first_column + step / num_chunks * kColumns, width);
    };

    begin(0);
    b.end(shared.b[0]);
    cp_async_commit();
    prepare_h<T>(p, piece, rank, h, shared.factors);
    float d[4][4][4] = {};
    for (uint32_t step = 0; step < num_steps; ++step) {
        cp_async_wait<0>();
        __syncthreads();
        if (step + 1 < num_steps) begin(step + 1);
        cp_async_commit();
        const uint32_t first_rank = step % num_chunks * kRanks;
#pragma unroll
        for (uint32_t k = 0; k < kRanks; k += 16) {
            if (first_rank + k >= rank) break;
            uint32_t columns[2][4];
#pragma unroll
            for (uint32_t n = 0; n < 2; ++n) {
                const uint32_t chunk = warp * (kWarpColumns / 8) + n * 2 + lane / 16;
                ldmatrix_x4_trans(columns[n], tile_chunk<kColumns>(shared.b[step % 2], k + lane % 16, chunk));
            }
#pragma unroll
            for (uint32_t m = 0; m < 4; ++m) {
                if (m * 16 >= piece.num_rows) break;
                uint32_t rows[4];
                ldmatrix_x4(rows, h + (m * 16 + lane % 16) * stride_of(rank) + first_rank + k + lane / 16 * 8);
#pragma unroll
                for (uint32_t n = 0; n < 4; ++n) {
                    const uint32_t pair[2] = {columns[n / 2][n % 2 * 2], columns[n / 2][n % 2 * 2 + 1]};
                    mma_m16n8k16<T>(d[m][n], rows, pair);
                }
            }
        }
        if (step + 1 < num_steps) b.end(shared.b[(step + 1) % 2]);
        if (step % num_chunks + 1 < num_chunks) continue;
        const uint32_t column = first_column + step / num_chunks * kColumns + warp * kWarpColumns;
        add_tile<kAligned>(p, piece, column, width, d, shared.sums[warp], shared.factors);
#pragma unroll
        for (uint32_t i = 0; i < 64; ++i) d[i / 16][i / 4 % 4][i % 4] = 0.0f;
    }
}

template <typename T> __device__ __forceinline__ void sgmv_expand(const SgmvExpandParams &p) {
    const LoraPiece piece = p.pieces[blockIdx.y];
    const uint32_t width = p.num_outputs[blockIdx.z];
    if (piece.num_rows == 0 || blockIdx.x * kTiles * kColumns >= width) return;
    const LoraSite &site = piece.sites[p.sites[blockIdx.z]];
    if (site.rank == 0) return;
    with_dtype(site.b_dtype, [&](auto of) {
        using W = typename decltype(of)::type;
        if (width % 8 == 0) {
            expand_tiles<T, W, true>(p, piece, site);
        } else {
            expand_tiles<T, W, false>(p, piece, site);
        }
    });
}

WEFT_KERNEL_BLOCKS(sgmv_expand_f16, SgmvExpandParams, kTileThreads, 2) { sgmv_expand<f16>(p); }
WEFT_KERNEL_BLOCKS(sgmv_expand_bf16, SgmvExpandParams, kTileThreads, 2) { sgmv_expand<bf16>(p); }
