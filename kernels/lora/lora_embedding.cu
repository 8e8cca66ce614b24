// h[t,j] = scale * A[token[t],j]    A:[vocab,rank]  h:[T,rank] f32; 0 for virtual tokens, beyond A
//
// The first half of an adapter's embedding update, out[t,:] += scale * A[token[t],:] B; the second is
// the expand of bgmv_expand.cu or sgmv_expand.cu. A block is a piece, a warp takes a row.
#include "lora.cuh"

struct LoraEmbeddingParams {
    const LoraPiece *pieces;
    const uint32_t *tokens;
    float *h;  // [T, h_width]
    uint32_t site;
    uint32_t h_width;
};

WEFT_KERNEL(lora_embedding, LoraEmbeddingParams, 256) {
    const LoraPiece piece = p.pieces[blockIdx.x];
    if (piece.num_rows == 0) return;
    const LoraSite &site = piece.sites[p.site];
    if (site.rank == 0) return;
    with_dtype(site.a_dtype, [&](auto of) {
        using W = typename decltype(of)::type;
        for (uint32_t t = warp_index(); t < piece.num_rows; t += blockDim.x / kWarpSize) {
            const size_t row = piece.first_row + t;
            const uint32_t token = p.tokens[row];
            const bool is_there = token < site.num_tokens;
            const W *a = row_of<W>(site.a, is_there ? token : 0, site.rank);
            for (uint32_t j = lane_index(); j < site.rank; j += kWarpSize) {
                p.h[row * p.h_width + j] = is_there ? to_f32(a[j]) * scale_of(site, j) : 0.0f;
            }
        }
    });
}
