#!/usr/bin/env bash
# Everything that is measured on a GPU, in one go. In: a built `weft`; no cargo, no network. Out: a
# table, and raw JSON in benches/snapshots/<GPU>/.
#
#   benches/gpu/run.sh [--weft PATH] [--out DIR] [--only kernels|sanitizer|engine|peer] [--dry-run]
#
# --dry-run: tiny shapes on the emulated GPU (WEFT_CUDA_EMULATOR names its library). It shows that the
# commands work, and measures nothing.
set -uo pipefail
cd "$(dirname "$0")/../.."

weft=target/release/weft out="" only="" dry=""
while [ $# -gt 0 ]; do
    case "$1" in
        --weft) weft=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --only) only=$2; shift 2 ;;
        --dry-run) dry=1; shift ;;
        *) sed -n '2,8p' "$0" >&2; exit 2 ;;
    esac
done
case "$only" in
    ""|kernels|sanitizer|engine|peer) ;;
    *) echo "there is no part \"$only\": kernels, sanitizer, engine or peer" >&2; exit 2 ;;
esac
if [ ! -x "$weft" ]; then
    echo "$weft is not there: name a built weft with --weft" >&2
    exit 2
fi

if [ -n "$dry" ]; then
    if [ ! -e "${WEFT_CUDA_EMULATOR:-}" ]; then
        echo "a dry run needs WEFT_CUDA_EMULATOR, the library of emulated kernels" >&2
        exit 2
    fi
    gpu=emulated
    # Never beside what was measured.
    out=${out:-$(mktemp -d)}
    engine=(--model-shape tiny) peer=(--tiny) batches="2" num_adapters=2
    kernels=(--filter norm)
else
    unset WEFT_CUDA_EMULATOR
    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
    if [ -z "$gpu" ]; then
        echo "there is no GPU here: --dry-run needs none" >&2
        exit 2
    fi
    slug=$(printf '%s' "$gpu" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-')
    out=${out:-benches/snapshots/${slug%-}}
    engine=(--model-shape llama-3.1-8b) peer=() batches="1 8 32" num_adapters=32
    kernels=()
fi
mkdir -p "$out"

failures=()
# A part that fails does not keep the others from running.
part() {
    local what=$1 limit_s=$2
    shift 2
    echo "== $what" >&2
    timeout "$limit_s" "$@" 2>&1 | tee "$out/$what.log" >&2
    local code=${PIPESTATUS[0]}
    if [ "$code" -ne 0 ]; then
        failures+=("$what ended with code $code: $out/$what.log")
        rm -f "$out/$what.json"
    fi
}
wanted() { [ -z "$only" ] || [ "$only" = "$1" ]; }

if [ -z "$dry" ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit \
        --format=csv > "$out/gpu.csv"
fi
if wanted kernels; then
    part kernels 600 "$weft" bench kernels "${kernels[@]}" --json "$out/kernels.json"
fi
if wanted sanitizer; then
    if [ -z "$dry" ] && command -v compute-sanitizer > /dev/null; then
        for tool in memcheck racecheck; do
            part "$tool" 600 compute-sanitizer --tool "$tool" --error-exitcode 1 \
                "$weft" bench kernels "${kernels[@]}"
        done
    else
        echo "== compute-sanitizer is not here, or has no GPU: skipped" >&2
    fi
fi
if wanted engine; then
    for batch in $batches; do
        part "engine-b$batch-base" 300 "$weft" bench engine "${engine[@]}" --batch "$batch" \
            --adapters 0 --rank 16 --json "$out/engine-b$batch-base.json"
        part "engine-b$batch-shared" 300 "$weft" bench engine "${engine[@]}" --batch "$batch" \
            --adapters 1 --rank 16 --shared --json "$out/engine-b$batch-shared.json"
        n=$((batch < num_adapters ? batch : num_adapters))
        part "engine-b$batch-distinct" 300 "$weft" bench engine "${engine[@]}" --batch "$batch" \
            --adapters "$n" --rank 16 --distinct --json "$out/engine-b$batch-distinct.json"
    done
fi
if wanted peer; then
    if python3 -c 'import torch, transformers, peft' 2> /dev/null; then
        part peer 900 python3 benches/gpu/peer_peft.py "${peer[@]}" --json "$out/peer.json"
    else
        echo "== PyTorch, transformers or peft is not here: no peer" >&2
    fi
fi

python3 benches/gpu/report.py "$out" || failures+=("the table could not be printed")
echo "raw figures: $out" >&2
for failure in "${failures[@]+"${failures[@]}"}"; do echo "FAILED: $failure" >&2; done
if [ -n "$dry" ]; then
    echo "DRY RUN on an emulated GPU with tiny shapes: NOTHING WAS MEASURED."
fi
[ ${#failures[@]} -eq 0 ]
