#!/usr/bin/env bash
# Everything that is measured on a GPU, part by part. In: a built `weft`; no cargo, no network. Out: a
# table, and raw JSON in benches/snapshots/<GPU>/.
#
#   benches/gpu/run.sh [--weft PATH] [--out DIR] [--only PART,…] [--batches "1 8 …"]
#                      [--num-adapters "5 100 …"] [--dry-run]
#
# Parts, in this order; `decode` and `slora` can be cut further, where ten minutes are all there is:
#   copy       what our own copy and largest linear reach: bounds come of that
#   kernels    every kernel: its error and its time
#   sanitizer  compute-sanitizer's memcheck and racecheck over every kernel
#   tokens     the demo model and its adapters: the CPU's greedy tokens?
#   decode     a decode step of llama-3.1-8b: batches (--batches) x base, shared, distinct, mixed ranks
#   peer       the same in transformers and peft
#   slora      S-LoRA's workloads S1 and S2 on llama-2-7b, with many adapters (--num-adapters)
# --dry-run: tiny shapes on the emulated GPU (WEFT_CUDA_EMULATOR names its library). It shows that the
# commands work, and measures nothing.
set -uo pipefail
cd "$(dirname "$0")/../.."

parts="copy kernels sanitizer tokens decode peer slora"
weft=target/release/weft out="" only="" dry="" batches="" num_adapters=""
while [ $# -gt 0 ]; do
    case "$1" in
        --weft) weft=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --only) only=${2//,/ }; shift 2 ;;
        --batches) batches=$2; shift 2 ;;
        --num-adapters) num_adapters=$2; shift 2 ;;
        --dry-run) dry=1; shift ;;
        *) sed -n '2,19p' "$0" >&2; exit 2 ;;
    esac
done
for part in $only; do
    case " $parts " in
        *" $part "*) ;;
        *) echo "there is no part \"$part\": $parts" >&2; exit 2 ;;
    esac
done
if [ ! -x "$weft" ]; then
    echo "$weft is not there: name a built weft with --weft" >&2
    exit 2
fi

if [ -n "$dry" ]; then
    if [ ! -e "${WEFT_CUDA_EMULATOR:-}" ]; then
        echo "a dry run needs WEFT_CUDA_EMULATOR, the library of emulated kernels" >&2
        exit 2
    fi
    # Never beside what was measured.
    out=${out:-$(mktemp -d)}
    shapes=tiny repeats=1 tokens=(--tiny --max-tokens 8) peer=(--tiny)
    decode=(tiny --memory 64MiB --input-len 16 --output-len 4 --token-ids 1-200)
    batches=${batches:-2} num_adapters=${num_adapters:-5}
    slora=(tiny --memory 64MiB --input-len 8-32 --output-len 2-8 --token-ids 1-200 --rate 50 --num-requests 8)
    # Bytes of one rank: two numbers for each input and output of q, k, v, o.
    bytes_per_rank=2304
else
    unset WEFT_CUDA_EMULATOR
    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
    if [ -z "$gpu" ]; then
        echo "there is no GPU here: --dry-run needs none" >&2
        exit 2
    fi
    slug=$(printf '%s' "$gpu" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-')
    out=${out:-benches/snapshots/${slug%-}}
    shapes=llama-3.1-8b repeats=20 tokens=() peer=()
    # Room for all adapters of a batch; whole prompts in few steps, so that most steps are decodes.
    mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
    pool=$((mib * 6 / 10))MiB
    decode=(llama-3.1-8b --memory "$pool" --input-len 512 --output-len 128 --max-model-len 1024
        --max-num-batched-tokens 4096 --target-step-ms 0)
    batches=${batches:-1 8 32 64 128} num_adapters=${num_adapters:-5 100 1000 2000}
    slora=(llama-2-7b --memory "$pool" --input-len 8-511 --output-len 8-511 --max-model-len 1024 --max-num-seqs 128
        --max-num-batched-tokens 2048 --rate 30 --num-requests 900)
    bytes_per_rank=2097152
fi
mkdir -p "$out"

failures=()
# A step that fails does not keep the others from running.
step() {
    local what=$1 limit_s=$2 code
    shift 2
    echo "== $what" >&2
    # What an earlier run left is not of this one.
    rm -f "$out/$what.json"
    timeout "$limit_s" "$@" 2>&1 | tee "$out/$what.log" >&2
    code=${PIPESTATUS[0]}
    if [ "$code" -ne 0 ]; then
        failures+=("$what ended with code $code: $out/$what.log")
    fi
}
skip() { echo "== $1: skipped, $2" >&2; }
wanted() {
    case " ${only:-$parts} " in *" $1 "*) true ;; *) false ;; esac
}
engine() {
    local what=$1 limit_s=$2
    shift 2
    step "$what" "$limit_s" "$weft" bench engine "$@" --load-format dummy --device cuda \
        --json "$out/$what.json"
}

if [ -z "$dry" ]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit \
        --format=csv > "$out/gpu.csv"
fi
kernels=("$weft" bench kernels --device cuda --shapes "$shapes")
if wanted copy; then
    step copy 300 "${kernels[@]}" --repeats "$repeats" --filter gather --json "$out/copy.json"
fi
if wanted kernels; then
    step kernels 590 "${kernels[@]}" --repeats "$repeats" --json "$out/kernels.json"
fi
if wanted sanitizer; then
    if [ -n "$dry" ]; then
        skip sanitizer "compute-sanitizer needs a GPU; its command without it:"
        step sanitizer-command 300 "$weft" bench kernels --device cuda --shapes tiny --repeats 0
    elif command -v compute-sanitizer > /dev/null; then
        for tool in memcheck racecheck; do
            step "$tool" 590 compute-sanitizer --tool "$tool" --error-exitcode 1 \
                "$weft" bench kernels --device cuda --shapes tiny --repeats 0
        done
    else
        skip sanitizer "compute-sanitizer is not here"
    fi
fi
if wanted tokens; then
    step tokens 590 python3 benches/gpu/same_tokens.py --weft "$weft" "${tokens[@]}" \
        --json "$out/tokens.json"
fi
if wanted decode; then
    for batch in $batches; do
        here=("${decode[@]}" --concurrency "$batch" --num-requests "$batch" --max-num-seqs "$batch")
        engine "decode-$batch-base" 300 "${here[@]}"
        engine "decode-$batch-shared" 300 "${here[@]}" --adapters 1 --rank 16 --distribution identical
        # Every adapter is on the device before the clock starts.
        here+=(--adapters "$batch" --warmup "$batch")
        engine "decode-$batch-distinct" 300 "${here[@]}" --rank 16
        engine "decode-$batch-mixed" 300 "${here[@]}" --rank 8,16,32,64
    done
fi
if wanted peer; then
    if python3 -c 'import torch, transformers, peft' 2> /dev/null; then
        step peer 590 python3 benches/gpu/peer_peft.py "${peer[@]}" --json "$out/peer.json"
    else
        skip peer "PyTorch, transformers or peft is not here"
    fi
fi
if wanted slora; then
    memory=$(awk '/MemAvailable/ { printf "%.0f", $2 * 1024 }' /proc/meminfo)
    for setting in s1:8:8 s2:64,32,16,8:30; do
        IFS=: read -r name ranks mean_rank <<< "$setting"
        for n in $num_adapters; do
            # Adapters are made in this machine's memory: of eight bits when sixteen find no room.
            if [ "$((n * mean_rank * bytes_per_rank * 5))" -gt "$((memory * 7))" ]; then
                skip "slora-$name-$n" "$n adapters do not fit into memory"
                continue
            fi
            dtype=(--adapter-dtype auto)
            if [ "$((n * mean_rank * bytes_per_rank * 10))" -gt "$((memory * 7))" ]; then
                dtype=(--adapter-dtype int8)
                echo "== $name, $n adapters: int8, in f16 they would not fit into memory" >&2
            fi
            engine "slora-$name-$n" 590 "${slora[@]}" --adapters "$n" --rank "$ranks" \
                --target-modules q,k,v,o --distribution power:1 --cv 1 "${dtype[@]}"
        done
    done
fi

python3 benches/gpu/report.py "$out" || failures+=("the table could not be printed")
echo "raw figures: $out" >&2
for failure in "${failures[@]+"${failures[@]}"}"; do echo "FAILED: $failure" >&2; done
if [ -n "$dry" ]; then
    echo "DRY RUN on an emulated GPU with tiny shapes: NOTHING WAS MEASURED."
fi
[ ${#failures[@]} -eq 0 ]
