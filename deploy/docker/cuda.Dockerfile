# syntax=docker/dockerfile:1
# Weft for NVIDIA GPUs, and for processors where there is none. From the repository's root:
#   docker build -f deploy/docker/cuda.Dockerfile -t REGISTRY/weft:0.1.0-cuda .
#
# The kernels are compiled by the nvcc that scripts/nvcc.sh brings and are embedded in the program. It
# asks the driver's libcuda for all else, at run time, which NVIDIA's container runtime mounts: so there
# are no CUDA libraries in the image, and the final stage is that of the CPU.

FROM rust:1.95-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# scripts/nvcc.sh unpacks nvcc beside the system's Python packages, not among them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    --mount=type=cache,target=/nvcc \
    nvcc="$(WEFT_CACHE=/nvcc PIP_BREAK_SYSTEM_PACKAGES=1 scripts/nvcc.sh)" \
    && WEFT_NVCC="$nvcc" cargo build --release --locked --features cuda --bin weft \
    && cp target/release/weft /weft
RUN mkdir /cache

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="weft" \
      org.opencontainers.image.description="One quantized base model and hundreds of LoRA adapters behind the OpenAI API" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /weft /usr/local/bin/weft
COPY --from=build --chown=65532:65532 /cache /cache
# The runtime mounts libcuda where the loader looks; what it mounts is asked for here.
ENV WEFT_CACHE=/cache \
    HF_HOME=/cache/huggingface \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["/usr/local/bin/weft"]
CMD ["serve", "--help"]
