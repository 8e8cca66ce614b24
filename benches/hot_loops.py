#!/usr/bin/env python3
"""The innermost loops of the kernels, as the compiler made them: what multiplies, and what spills.

    cargo build --release && python3 benches/hot_loops.py [--show] [BINARY]

For every innermost loop of a kernel that multiplies: its instructions, how many of them multiply, and how
many move vectors to or from the stack, which is what a spill looks like. `--show` prints the loops. Needs
objdump. Kernels compiled for instruction sets that this machine does not have are looked at, too.
"""

import collections
import re
import subprocess
import sys

MULTIPLIES = re.compile(r"^(vpdpwssd|vpdpbusd|vpmaddwd|vpmaddubsw|tdpb\w+|vfmadd\d+ps)")
KERNELS = re.compile(r"weft_kernels::(matmul::(amx|avx512|avx2|bytes)::|lora::(shrink|expand)::|attention::attend)")
JUMP = re.compile(r"^j\w+\s+([0-9a-f]+)")


def main():
    words = [word for word in sys.argv[1:] if word != "--show"]
    binary = words[0] if words else "target/release/weft"
    text = subprocess.run(["objdump", "--disassemble", "--demangle", "--wide", "--no-show-raw-insn", binary],
                          capture_output=True, text=True, check=True).stdout
    print("| kernel | multiplies with | loops | instructions | of them multiply | vector spills |")
    print("|---|---|---|---|---|---|")
    spilled = 0
    for name, instructions in functions(text):
        for_table = collections.defaultdict(list)
        for loop in innermost(instructions):
            kinds = [MULTIPLIES.match(word)[1] for _, word in loop if MULTIPLIES.match(word)]
            if not kinds:
                continue
            spills = sum(1 for _, word in loop if "(%rsp" in word and re.search(r"%[yz]mm", word)
                         and word.startswith("vmov"))
            for_table[max(set(kinds), key=kinds.count)].append((len(loop), len(kinds), spills))
            if "--show" in sys.argv:
                print(f"\n{name}")
                print("\n".join(f"  {address:x}  {word}" for address, word in loop))
        for kind, loops in sorted(for_table.items()):
            sizes, multiply, spills = (sum(column) for column in zip(*loops))
            spilled += spills
            print(f"| {name} | {kind} | {len(loops)} | {sizes} | {multiply} | {spills} |")
    print(f"\n{spilled} vectors are moved to or from the stack in all of these loops")


def functions(text):
    """(name, [(address, instruction)]) of the kernels."""
    for block in re.split(r"\n\n", text):
        head = re.match(r"^[0-9a-f]+ <(.*)>:$", block.split("\n", 1)[0])
        if not head or not KERNELS.search(head[1]):
            continue
        instructions = []
        for line in block.split("\n")[1:]:
            parts = line.strip().split(":\t", 1)
            if len(parts) == 2:
                instructions.append((int(parts[0], 16), parts[1].strip()))
        yield re.sub(r"weft_kernels::", "", head[1]), instructions


def innermost(instructions):
    """Runs of instructions that jump back to their first and contain no other such run."""
    places = {address: index for index, (address, _) in enumerate(instructions)}
    loops = []
    for index, (_, word) in enumerate(instructions):
        jump = JUMP.match(word)
        start = places.get(int(jump[1], 16)) if jump else None
        if start is not None and start <= index:
            loops.append((start, index))
    for start, end in loops:
        if not any((a, b) != (start, end) and start <= a and b <= end for a, b in loops):
            yield instructions[start:end + 1]


if __name__ == "__main__":
    main()
