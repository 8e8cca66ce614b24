// The kernels of linear_decode.cuh and linear_prefill.cuh for weights in format w8 of weights.cuh.
#include "linear_decode.cuh"
#include "linear_prefill.cuh"

WEFT_LINEAR_DECODE(w8_f16, f16, Format::kW8)
WEFT_LINEAR_DECODE(w8_bf16, bf16, Format::kW8)
WEFT_LINEAR_PREFILL(w8_f16, f16, Format::kW8)
WEFT_LINEAR_PREFILL(w8_bf16, bf16, Format::kW8)
