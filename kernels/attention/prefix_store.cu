// Keys and values that an adapter gives for its virtual tokens, into the paged KV cache.
//
// For each of the rows of a step: k = given[2 l n + i,:], v = given[(2 l + 1) n + i,:], of layer l,
// virtual token i of n; given:[layers * 2 * n, kv heads * D] of f32, f16 or bf16, in an adapter's table.
// Over what rope_store put there; not rotated. A block takes a row. Bound: launch.
#include "../lora/lora.cuh"
#include "kv.cuh"

struct PrefixRow {
    const LoraSite *sites;
    uint32_t row;    // of the step
    uint32_t token;  // i
};

struct PrefixStoreParams {
    PagedKv kv;
    const PrefixRow *rows;
    const uint32_t *blocks;   // [T]
    const uint32_t *offsets;  // [T]
    uint32_t site;            // the record of given keys and values
    uint32_t head_dim;
};

template <typename Kv> __device__ __forceinline__ void prefix_store(const PrefixStoreParams &p) {
    const PrefixRow given = p.rows[blockIdx.x];
    const uint32_t block = p.blocks[given.row], offset = p.offsets[given.row];
    if (block == kNoBlock) return;
    const LoraSite &site = given.sites[p.site];
    const uint32_t width = p.kv.num_kv_heads * p.head_dim, num_tokens = site.rank;
    with_dtype(site.a_dtype, [&](auto of) {
        using W = typename decltype(of)::type;
        const W *key = row_of<W>(site.a, 2 * p.kv.layer * num_tokens + given.token, width);
        const W *value = row_of<W>(site.a, (2 * p.kv.layer + 1) * num_tokens + given.token, width);
        for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
            Kv *to = page_of<Kv>(p.kv, block, i / p.head_dim, p.head_dim) + offset * p.head_dim +
                     i % p.head_dim;
            *to = from_f32<Kv>(to_f32(key[i]));
            to[kBlockTokens * p.head_dim] = from_f32<Kv>(to_f32(value[i]));
        }
    });
}

WEFT_KERNEL(prefix_store_f16, PrefixStoreParams, 256) { prefix_store<f16>(p); }
WEFT_KERNEL(prefix_store_bf16, PrefixStoreParams, 256) { prefix_store<bf16>(p); }
WEFT_KERNEL(prefix_store_e4m3, PrefixStoreParams, 256) { prefix_store<e4m3>(p); }
