// The kernels of linear_decode.cuh and linear_prefill.cuh for weights in format w4 of weights.cuh.
#include "linear_decode.cuh"
#include "linear_prefill.cuh"

WEFT_LINEAR_DECODE(w4_f16, f16, Format::kW4)
WEFT_LINEAR_DECODE(w4_bf16, bf16, Format::kW4)
WEFT_LINEAR_PREFILL(w4_f16, f16, Format::kW4)
WEFT_LINEAR_PREFILL(w4_bf16, bf16, Format::kW4)
