#!/usr/bin/env python3
"""The operations of a step under the roofs of the machine (Williams, Waterman and Patterson 2009).

    cargo bench -p weft-runner --bench step -- MODEL --json step.json
    python3 benches/roofline.py step.json step.svg

A point is an operation of a kind of step: how many multiplications and additions it does for a byte
that it reads or writes at the least, and how many per second. What it could do at most is the lower
of two roofs: bytes per second times operations per byte, and the integer products of a processor's
instructions, both as measured beside it.
"""

import json
import sys

import svgplot

# What is worth a point: the rest takes less than a hundredth of a step.
MIN_SHARE = 0.01


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1]) as file:
        report = json.load(file)
    series = []
    for case in report["cases"]:
        total = sum(op["ms"] for op in case["ops"])
        points = [(op["op"], op["ops"] / op["bytes"], op["ops"] / op["ms"] / 1e6) for op in case["ops"]
                  if op["ops"] and op["ms"] >= MIN_SHARE * total]
        series.append((case["name"], points))
    bandwidth = report["read_bytes_per_s"] / 1e9
    roofs = [(name, rate / 1e9) for name, rate in report["int8_ops_per_s"].items()]
    note = (f"{report['model']}, {report['isa']}, {report['threads']} threads, {report['context']} tokens of "
            f"context; {bandwidth:.1f} GB/s read")
    svgplot.write(sys.argv[2], "Operations of a step, and the machine's roofs",
                  [Roofline(series, bandwidth, roofs)], note)


class Roofline(svgplot.Panel):
    """`series` is (name, points); a point is (name, operations per byte, billions of them a second)."""

    width = 760

    def __init__(self, series, bandwidth, roofs):
        values = [[[rate] for _, _, rate in points] for _, points in series]
        super().__init__("billions of operations/s", [(name, ys) for (name, _), ys in zip(series, values)],
                         True, [])
        self.points, self.bandwidth, self.roofs = series, bandwidth, roofs
        self.all = [x for _, points in series for _, x, _ in points]
        highest = max(rate for _, rate in roofs) if roofs else 1
        self.y = svgplot.Scale([min(r for _, ps in series for _, _, r in ps) / 2, highest],
                               svgplot.PANEL_HEIGHT - svgplot.BOTTOM, svgplot.TOP + 52, True)

    def draw(self):
        names, self.series = self.series, self.series[:1]
        parts = super().draw()
        for i, (name, _) in enumerate(names):
            x, y = svgplot.LEFT + 236 * (i % 3), 22 + 15 * (i // 3)
            parts.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{svgplot.colour(i)}"/>')
            parts.append(svgplot.text(x + 14, y + 9, name, size=11))
        return parts

    def marks(self, left, right):
        bottom = svgplot.PANEL_HEIGHT - svgplot.BOTTOM
        x = svgplot.Scale([min(self.all) / 1.5, max(self.all) * 1.5], left, right, True, is_tight=True)
        parts = [svgplot.text((left + right) / 2, bottom + 36, "operations per byte", anchor="middle")]
        for value in x.ticks():
            parts.append(svgplot.line(x(value), bottom, x(value), bottom + 4, svgplot.INK))
            parts.append(svgplot.text(x(value), bottom + 18, svgplot.short(value), anchor="middle"))
        for name, rate in self.roofs:
            ridge = rate / self.bandwidth
            start, end = max(x.low, min(ridge, x.high)), x.high
            if ridge < x.high:
                parts.append(svgplot.line(x(start), self.y(rate), x(end), self.y(rate), "#b00020"))
            parts.append(svgplot.text(right - 2, self.y(rate) - 4, f"{name}, 8 bits", anchor="end", size=11,
                                      fill="#b00020"))
        top = min(x.high, self.y.high / self.bandwidth)
        parts.append(svgplot.line(x(x.low), self.y(x.low * self.bandwidth), x(top),
                                  self.y(top * self.bandwidth), "#b00020"))
        for i, (_, points) in enumerate(self.points):
            for name, intensity, rate in points:
                at, height = x(intensity), self.y(rate)
                parts.append(f'<circle cx="{at:.1f}" cy="{height:.1f}" r="4" fill="{svgplot.colour(i)}">'
                             f"<title>{name}</title></circle>")
        return parts


if __name__ == "__main__":
    main()
