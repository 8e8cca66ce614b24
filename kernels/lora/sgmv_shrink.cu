// h_p[t,j] = scales[j] * (x[t,:] . A_p[j,:])    x:[T,K] T  A:[rank,K]  h:[targets,splits,T,h_width] f32
//
// Prefill, first half: pieces of at most 64 rows of one adapter, on tensor cores with ranks as M and
// rows as N. K is split over blocks, so that few rows fill the device; sgmv_expand.cu adds the parts
// in order. Ranks are padded to sixteen in shared memory only.
// Bound: bytes of x and A, from the L2 cache / its bandwidth.
#include "tile.cuh"

struct SgmvShrinkParams {
    const LoraPiece *pieces;
    const void *x;
    float *h;
    uint32_t sites[kMaxTargets];
    uint32_t num_inputs;
    uint32_t num_rows;
    uint32_t h_width;
    uint32_t num_splits;
    uint32_t split_inputs;  // of K, a multiple of 64
};

constexpr uint32_t kTile = 64;  // rows of x, ranks and inputs of a step
constexpr uint32_t kStages = 3;
constexpr uint32_t kTileNumbers = kTile * kTile;

// d[m][n]: ranks 16 m .., rows 8 n .. of the warp's sixteen.
template <typename T>
__device__ __forceinline__ void multiply(float (&d)[4][2][4], T *a, T *x, uint32_t num_rank_tiles) {
    const uint32_t lane = lane_index(), warp = warp_index();
#pragma unroll
    for (uint32_t k = 0; k < kTile / 16; ++k) {
        uint32_t b[4];
        const uint32_t row = warp * 16 + lane / 16 * 8 + lane % 8;
        ldmatrix_x4(b, tile_chunk<kTile>(x, row, 2 * k + lane / 8 % 2));
        const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (uint32_t m = 0; m < 4; ++m) {
            if (m >= num_rank_tiles) break;
            uint32_t fragment[4];
            ldmatrix_x4(fragment, tile_chunk<kTile>(a, m * 16 + lane % 16, 2 * k + lane / 16));
            mma_m16n8k16<T>(d[m][0], fragment, first);
            mma_m16n8k16<T>(d[m][1], fragment, second);
        }
    }
}

template <typename T, typename W, bool kAligned>
__device__ __forceinline__ void shrink_tile(const SgmvShrinkParams &p, const LoraPiece &piece,
                                            const LoraSite &site, uint32_t first_rank, uint32_t split) {
    T *const shared = reinterpret_cast<T *>(dynamic_shared());
    const auto x_tile = [&](uint32_t step) { return shared + step % kStages * 2 * kTileNumbers; };
    const auto a_tile = [&](uint32_t step) { return x_tile(step) + kTileNumbers; };
    const uint32_t width = p.num_inputs;
    const uint32_t first_input = split * p.split_inputs;
    const uint32_t end_input = min(width, first_input + p.split_inputs);
    const uint32_t num_steps = (end_input - first_input + kTile - 1) / kTile;
    const uint32_t num_rank_tiles = min((site.rank - first_rank + 15) / 16, 4u);

    TileLoader<T, T, kTile, kAligned> x;
    TileLoader<W, T, kTile, kAligned> a;
    x.is_there = a.is_there = 0;
    x.num_groups = (piece.num_rows + 15) / 16;
    a.num_groups = num_rank_tiles;
#pragma unroll
    for (uint32_t group = 0; group < 4; ++group) {
        const uint32_t t = x.row(group), j = first_rank + a.row(group);
        x.rows[group] = static_cast<const T *>(p.x) +
                        (piece.first_row + min(t, piece.num_rows - 1)) * size_t{width};
        a.rows[group] = row_of<W>(site.a, min(j, site.rank - 1), width);
        x.is_there |= uint32_t{t < piece.num_rows} << group;
        a.is_there |= uint32_t{j < site.rank} << group;
    }
    const auto begin = [&](uint32_t step) {
        x.begin(x_tile(step), first_input + step * kTile, end_input);
        a.begin(a_tile(step), first_input + step * kTile, end_input);
    };
    const auto end = [&](uint32_t step) {
        x.end(x_tile(step));
        a.end(a_tile(step));
    };

#pragma unroll
    for (uint32_t step = 0; step < kStages - 1; ++step) {
        if (step < num_steps) {
            begin(step);
            end(step);
        }
        cp_async_commit();
    }
    const bool has_rows = static_cast<uint32_t>(warp_index()) * 16 < piece.num_rows;
    float d[4][2][4] = {};
    for (uint32_t step = 0; step < num_steps; ++step) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        const uint32_t next = step + kStages - 1;
        if (next < num_steps) begin(next);
        cp_async_commit();
        if (has_rows) multiply<T>(d, a_tile(step), x_tile(step), num_rank_tiles);
        if (next < num_steps) end(next);
    }

    const uint32_t lane = lane_index();
    float *h = p.h + (size_t{blockIdx.z} * p.num_splits + split) * p.num_rows * p.h_width;
#pragma unroll
    for (uint32_t m = 0; m < 4; ++m) {
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) {
            const uint32_t j = first_rank + m * 16 + lane / 4 + i % 4 / 2 * 8;
            const uint32_t t = warp_index() * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2;
            if (j >= site.rank || t >= piece.num_rows) continue;
            h[size_t{piece.first_row + t} * p.h_width + j] = d[m][i / 4][i % 4] * scale_of(site, j);
        }
    }
}

template <typename T> __device__ __forceinline__ void sgmv_shrink(const SgmvShrinkParams &p) {
    const LoraPiece piece = p.pieces[blockIdx.x];
    if (piece.num_rows == 0) return;
    const LoraSite &site = piece.sites[p.sites[blockIdx.z]];
    const uint32_t first_rank = blockIdx.y / p.num_splits * kTile, split = blockIdx.y % p.num_splits;
    if (first_rank >= site.rank) return;
    with_dtype(site.a_dtype, [&](auto of) {
        using W = typename decltype(of)::type;
        if (p.num_inputs % 8 == 0) {
            shrink_tile<T, W, true>(p, piece, site, first_rank, split);
        } else {
            shrink_tile<T, W, false>(p, piece, site, first_rank, split);
        }
    });
}

WEFT_KERNEL_BLOCKS(sgmv_shrink_f16, SgmvShrinkParams, kTileThreads, 4) { sgmv_shrink<f16>(p); }
WEFT_KERNEL_BLOCKS(sgmv_shrink_bf16, SgmvShrinkParams, kTileThreads, 4) { sgmv_shrink<bf16>(p); }
