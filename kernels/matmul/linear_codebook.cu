// The kernels of linear_decode.cuh and linear_prefill.cuh for weights in format codebook of weights.cuh.
#include "linear_decode.cuh"
#include "linear_prefill.cuh"

WEFT_LINEAR_DECODE(codebook_f16, f16, Format::kCodebook)
WEFT_LINEAR_DECODE(codebook_bf16, bf16, Format::kCodebook)
WEFT_LINEAR_PREFILL(codebook_f16, f16, Format::kCodebook)
WEFT_LINEAR_PREFILL(codebook_bf16, bf16, Format::kCodebook)
