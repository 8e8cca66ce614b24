#!/bin/sh
# Runs the kernels' tests for aarch64: on another machine under qemu, on a processor with dot products
# and on one without. In: words that the names of tests have, or nothing for all. Out: what the tests
# print; exit status 77 and a sentence if this machine cannot.
#
#   scripts/aarch64.sh          # about two minutes, four with a standard library to build
#   scripts/aarch64.sh matmul
#
# It needs a cross compiler and qemu (gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user), and the
# standard library for aarch64: rustup's, or where rustup cannot fetch it, one built from Debian's package
# of the same version of its source.
set -eu
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
cache="${WEFT_CACHE:-$HOME/.cache/weft}"
rustc=$(command -v rustc)
release=$("$rustc" -vV | sed -n 's/^release: //p')
host=$("$rustc" -vV | sed -n 's/^host: //p')
sysroot=$("$rustc" --print sysroot)

say() { echo "aarch64.sh: $*" >&2; }
skip() { say "skipped, the NEON kernels are not tested: $*"; exit 77; }

if [ "$host" = "$target" ]; then
    exec cargo test -p weft-kernels --lib -- "$@"
fi
for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
    command -v "$tool" > /dev/null || skip "$tool is missing; install it with:" \
        "sudo apt-get install -y gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
done

# Unpacks the source of the standard library into $1, checked with the keys that apt has.
unpack_source() {
    mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2> /dev/null | head -n 1)
    [ -n "$mirror" ] || skip "rustup cannot add $target, and there is no mirror of Debian to ask"
    mkdir -p "$1/lists/partial" "$1/archives/partial"
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    for suite in trixie-backports testing unstable; do
        echo "deb [signed-by=$keys] $mirror $suite main" > "$1/sources.list"
        options="-q -o Dir::Etc::SourceList=$1/sources.list -o Dir::Etc::SourceParts=/dev/null
            -o Dir::State::Lists=$1/lists -o Dir::Cache=$1 -o APT::Sandbox::User=root"
        # shellcheck disable=SC2086  # words are meant to split
        apt-get $options update >&2 || continue
        # shellcheck disable=SC2086
        package=$(apt-cache $options madison rust-src |
            awk -v release="$release" 'index($3, release "+") == 1 { print $3; exit }')
        [ -n "$package" ] || continue
        # shellcheck disable=SC2086
        (cd "$1" && apt-get $options download "rust-src=$package" >&2) || continue
        dpkg-deb -x "$1"/rust-src_*.deb "$1/unpacked"
        return
    done
    skip "rustup cannot add $target, and Debian has no package rust-src of version $release"
}

# A sysroot at $1 that is rustc's with the source, and a rustc for it.
make_sysroot() {
    mkdir -p "$cache"
    stage=$(mktemp -d "$cache/aarch64-stage.XXXXXX")
    trap 'rm -rf "$stage"' EXIT
    unpack_source "$stage"
    made="$stage/made"
    mkdir -p "$made/bin" "$made/lib/rustlib/src/rust"
    ln -s "$sysroot/lib/rustlib/$host" "$made/lib/rustlib/$host"
    mv "$stage/unpacked/usr/src/rustc-$release/library" "$made/lib/rustlib/src/rust/library"
    printf '#!/bin/sh\nexec "%s" --sysroot "%s" "$@"\n' "$rustc" "$1" > "$made/bin/rustc"
    chmod +x "$made/bin/rustc"
    rm -rf "$1"
    mv -T "$made" "$1"
    rm -rf "$stage"
    trap - EXIT
}

build_std=""
if [ ! -d "$sysroot/lib/rustlib/$target/lib" ] &&
    ! { command -v rustup > /dev/null && timeout 120 rustup target add "$target" >&2; }; then
    say "rustup cannot add $target: building the standard library from its source"
    made_sysroot="$cache/aarch64-$release"
    [ -x "$made_sysroot/bin/rustc" ] || make_sysroot "$made_sysroot"
    # The unstable part is that cargo builds the library; what it builds is the stable one.
    export RUSTC_BOOTSTRAP=1 RUSTC="$made_sysroot/bin/rustc"
    build_std="-Zbuild-std=std,panic_unwind,test"
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Runs on processor $1 what is named by the other arguments.
tests_on() {
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu $1"
    shift
    # shellcheck disable=SC2086
    cargo test $build_std --target "$target" -p weft-kernels --lib -- "$@"
}

# qemu's `max` has dot products, a Cortex-A72 does not.
for processor in max cortex-a72; do
    say "on qemu's processor $processor"
    sets=$(tests_on "$processor" --nocapture sets_come_narrowest_first | grep '^sets: ')
    say "$sets"
    case "$processor $sets" in
        *"max sets: portable, NEON, NEON with dot products") ;;
        *"a72 sets: portable, NEON") ;;
        *) say "these are not the instruction sets of that processor"; exit 1 ;;
    esac
    tests_on "$processor" "$@"
done
