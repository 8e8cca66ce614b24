// out[rows[i].row,:] = rows[i]    out:[T,K] f32, a row of rows:[K] of f32, f16 or bf16; none: zeros
//
// Embeddings that adapters give for tokens, in place of the table's. A block takes a row.
// Bound: launch.
#include "../lora/lora.cuh"

struct GivenRow {
    const void *numbers;  // or null
    uint32_t row;
    Dtype dtype;
};

struct GivenRowsParams {
    const GivenRow *rows;
    float *out;
    uint32_t width;
    uint32_t pad;
};

WEFT_KERNEL(given_rows, GivenRowsParams, 256) {
    const GivenRow given = p.rows[blockIdx.x];
    float *out = p.out + size_t{given.row} * p.width;
    with_dtype(given.dtype, [&](auto of) {
        using W = typename decltype(of)::type;
        const W *numbers = static_cast<const W *>(given.numbers);
        for (uint32_t i = threadIdx.x; i < p.width; i += blockDim.x) {
            out[i] = numbers == nullptr ? 0.0f : to_f32(numbers[i]);
        }
    });
}
