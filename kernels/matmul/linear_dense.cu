// The kernels of linear_decode.cuh and linear_prefill.cuh for weights in format dense of weights.cuh.
#include "linear_decode.cuh"
#include "linear_prefill.cuh"

WEFT_LINEAR_DECODE(dense_f16, f16, Format::kDense)
WEFT_LINEAR_DECODE(dense_bf16, bf16, Format::kDense)
WEFT_LINEAR_PREFILL(dense_f16, f16, Format::kDense)
WEFT_LINEAR_PREFILL(dense_bf16, bf16, Format::kDense)
