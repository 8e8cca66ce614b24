#!/bin/sh
# Installs nvcc into a cache and prints its path. In: nothing, or WEFT_CACHE. Out: a path on stdout,
# what happens on stderr. The build of weft-cuda with the feature `cuda` finds it there by itself.
#
#   scripts/nvcc.sh            # about 110 MB the first time, nothing afterwards
#   WEFT_NVCC=$(scripts/nvcc.sh) cargo build --release --features cuda
#
# The compiler comes as Python packages, from wherever pip is set to look. It needs no GPU and no
# driver, only g++.
set -eu

version=13.0
packages="nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-cccl nvidia-cuda-runtime"
cache="${WEFT_CACHE:-$HOME/.cache/weft}"
home="$cache/nvcc-$version"
nvcc="$home/bin/nvcc"

say() { echo "nvcc.sh: $*" >&2; }

# Compiles a kernel for the newest and the oldest architecture that weft is built for.
works() {
    [ -x "$1" ] || return 1
    directory=$(mktemp -d)
    printf '#include <cuda_fp16.h>\n%s\n' '__global__ void twice(__half *x) { x[0] = x[0] + x[0]; }' \
        > "$directory/twice.cu"
    result=0
    for architecture in sm_80 sm_90a; do
        "$1" -std=c++17 "-arch=$architecture" -cubin -o "$directory/twice.cubin" \
            "$directory/twice.cu" >&2 && [ -s "$directory/twice.cubin" ] || result=1
    done
    rm -rf "$directory"
    return $result
}

if works "$nvcc"; then
    echo "$nvcc"
    exit 0
fi

if python3 -m pip --version > /dev/null 2>&1; then
    pip="python3 -m pip"
elif pip3 --version > /dev/null 2>&1; then
    pip=pip3
else
    say "this needs pip; install it with: sudo apt-get install -y python3-pip"
    exit 1
fi

say "fetching nvcc $version into $home"
mkdir -p "$cache"
stage=$(mktemp -d "$cache/nvcc-stage.XXXXXX")
trap 'rm -rf "$stage"' EXIT
requirements=""
for package in $packages; do requirements="$requirements $package==$version.*"; done
# shellcheck disable=SC2086  # words are meant to split
$pip install --quiet --no-deps --only-binary=:all: --disable-pip-version-check --no-input \
    --root-user-action=ignore --target "$stage" $requirements >&2

unpacked="$stage/nvidia/cu${version%%.*}"
if ! works "$unpacked/bin/nvcc"; then
    say "the packages came, but the nvcc in them does not compile; is g++ installed?"
    exit 1
fi
# Whole or not at all: two runs at once end with one of the two.
rm -rf "$home"
mv -T "$unpacked" "$home" 2> /dev/null || works "$nvcc"
echo "$nvcc"
