"""Prints what benches/gpu/run.sh left in a directory as one table. Python's own library is enough.

A file holds an object, or a list of objects, or an object with such a list; each object is a row, its
numbers and words are its columns. What parts have in common has one column.
"""

import glob
import json
import os
import sys

WIDEST = 40


def rows_of(value, shared):
    if isinstance(value, list):
        for item in value:
            yield from rows_of(item, shared)
    elif isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        own = {**shared, **{k: v for k, v in value.items() if isinstance(v, (str, int, float))}}
        if lists:
            for items in lists:
                yield from rows_of(items, own)
        else:
            yield own


def cell(value):
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= WIDEST else text[:WIDEST - 1] + "…"


def print_table(title, rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns] + [[cell(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    print(f"\n{title}")
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


def main():
    directory = sys.argv[1]
    kernels, steps = [], []
    for path in sorted(glob.glob(os.path.join(directory, "*.json"))):
        part = os.path.splitext(os.path.basename(path))[0]
        with open(path, encoding="utf-8") as file:
            found = list(rows_of(json.load(file), {} if part == "kernels" else {"part": part}))
        (kernels if part == "kernels" else steps).extend(found)
    if kernels:
        print_table("kernels", kernels)
    if steps:
        print_table("decode steps", steps)
    if not kernels and not steps:
        print("there are no figures")


if __name__ == "__main__":
    main()
