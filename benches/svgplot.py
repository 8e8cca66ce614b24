"""Plots as SVG, with Python's own library: panels of bars or lines, side by side.

Every value is a list of measurements: the median is drawn, with a whisker from least to most.

    write("out.svg", "Title", [Bars("tokens/s", ["base", "16 adapters"], [("weft", [[9, 10], [8]])])])
"""

import math
import statistics
from html import escape

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f"]
INK, FAINT = "#222222", "#dddddd"
PANEL_WIDTH, PANEL_HEIGHT, GAP = 420, 312, 24
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 46, 58


def write(path, title, panels, note=""):
    """Writes `panels` beside each other under `title`; `note` is small print below."""
    width = GAP + sum(panel.width + GAP for panel in panels)
    height = 44 + PANEL_HEIGHT + (26 if note else 8)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        text(GAP, 28, title, size=16, weight="bold"),
    ]
    x = GAP
    for panel in panels:
        parts.append(f'<g transform="translate({x} 44)">')
        parts += panel.draw()
        parts.append("</g>")
        x += panel.width + GAP
    if note:
        parts.append(text(GAP, height - 12, note, size=11, fill="#555555"))
    parts.append("</svg>\n")
    with open(path, "w") as file:
        file.write("\n".join(parts))


class Panel:
    """What bars and lines share: the frame, the value axis, the legend, and bars to clear."""

    width = PANEL_WIDTH

    def __init__(self, label, series, log_y, rules):
        self.label, self.series, self.rules = label, series, rules
        values = [v for _, points in series for measured in points for v in measured]
        values += [value for _, value in rules]
        self.y = Scale(values or [0, 1], PANEL_HEIGHT - BOTTOM, TOP, log_y)

    def draw(self):
        left, right = LEFT, self.width - RIGHT
        parts = [text(0, 14, self.label, weight="bold")]
        for tick in self.y.ticks():
            y = self.y(tick)
            parts.append(line(left, y, right, y, FAINT))
            parts.append(text(left - 6, y + 4, short(tick), anchor="end"))
        parts += self.marks(left, right)
        for name, value in self.rules:
            y = self.y(value)
            parts.append(line(left, y, right, y, "#b00020", dash="5 4"))
            parts.append(text(right - 2, y - 4, name, anchor="end", size=11, fill="#b00020"))
        parts.append(line(left, PANEL_HEIGHT - BOTTOM, right, PANEL_HEIGHT - BOTTOM, INK))
        if len(self.series) > 1:
            x = left
            for i, (name, _) in enumerate(self.series):
                parts.append(f'<rect x="{x}" y="24" width="10" height="10" fill="{colour(i)}"/>')
                parts.append(text(x + 14, 33, name))
                x += 30 + 6.6 * len(name)
        return parts

    def whisker(self, x, measured):
        low, high = self.y(min(measured)), self.y(max(measured))
        if abs(high - low) < 1:
            return []
        return [line(x, low, x, high, INK), line(x - 3, low, x + 3, low, INK),
                line(x - 3, high, x + 3, high, INK)]


class Bars(Panel):
    """Groups of bars. `series` is (name, one list of measurements per group); `rules` are dashed
    lines, (name, value)."""

    def __init__(self, label, groups, series, log_y=False, rules=()):
        super().__init__(label, series, log_y, list(rules))
        self.groups = groups
        slot = max(96, 44 * len(series))
        self.width = max(LEFT + RIGHT + slot * len(groups), 20 + int(7.6 * len(label)))

    def marks(self, left, right):
        parts = []
        slot = (right - left) / max(1, len(self.groups))
        bar = min(56, 0.8 * slot / max(1, len(self.series)))
        bottom = PANEL_HEIGHT - BOTTOM
        for g, group in enumerate(self.groups):
            middle = left + (g + 0.5) * slot
            for i, (_, points) in enumerate(self.series):
                measured = points[g]
                x = middle + (i - len(self.series) / 2) * bar
                y = self.y(statistics.median(measured))
                fill = colour(i if len(self.series) > 1 else g)
                parts.append(f'<rect x="{x + 1:.1f}" y="{y:.1f}" width="{bar - 2:.1f}" '
                             f'height="{max(0, bottom - y):.1f}" fill="{fill}"/>')
                parts += self.whisker(x + bar / 2, measured)
                above = min(y, self.y(max(measured))) - 5
                parts.append(text(x + bar / 2, above, short(statistics.median(measured)),
                                  anchor="middle", size=11))
            for row, words in enumerate(wrapped(group, int(slot / 7))):
                parts.append(text(middle, bottom + 16 + 14 * row, words, anchor="middle"))
        return parts


class Lines(Panel):
    """Lines through points. `xs` are shared; `series` is (name, one list of measurements per x)."""

    def __init__(self, label, x_label, xs, series, log_x=False, log_y=False, rules=()):
        super().__init__(label, series, log_y, list(rules))
        self.xs, self.x_label, self.log_x = xs, x_label, log_x

    def marks(self, left, right):
        bottom = PANEL_HEIGHT - BOTTOM
        x = Scale(self.xs, left + 14, right - 14, self.log_x, is_tight=True)
        parts = [text((left + right) / 2, bottom + 36, self.x_label, anchor="middle")]
        last = -math.inf
        # Few and chosen by whoever measures: the points are the ticks, where there is room.
        for value in self.xs if len(self.xs) <= 12 else x.ticks():
            at = x(value)
            parts.append(line(at, bottom, at, bottom + 4, INK))
            label = short(value)
            if at - last > 7 * len(label) + 4:
                parts.append(text(at, bottom + 18, label, anchor="middle"))
                last = at
        for i, (_, points) in enumerate(self.series):
            middles = [(x(value), self.y(statistics.median(measured)))
                       for value, measured in zip(self.xs, points) if measured]
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in middles)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour(i)}" '
                         'stroke-width="2"/>')
            for value, measured in zip(self.xs, points):
                if measured:
                    parts += self.whisker(x(value), measured)
            parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour(i)}"/>'
                      for px, py in middles]
        return parts


class Scale:
    """Values to positions. A linear axis that is not tight begins at zero."""

    def __init__(self, values, start, end, is_log, is_tight=False):
        values = [v for v in values if v > 0] if is_log else values
        low, high = (min(values), max(values)) if values else (1, 10)
        if is_log:
            low, high = (low, high) if is_tight else (low / 1.3, high * 1.3)
        elif not is_tight:
            low, high = min(0, low), high * 1.08
        if low == high:
            low, high = (low / 2, high * 2) if is_log else (low, low + 1)
        self.low, self.high, self.start, self.end, self.is_log = low, high, start, end, is_log

    def __call__(self, value):
        if self.is_log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self):
        if self.is_log:
            decades = math.log10(self.high / self.low)
            steps = [1] if decades > 3 else [1, 2, 5]
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            found = [s * 10.0**e for e in range(first, last + 1) for s in steps]
        else:
            rough = (self.high - self.low) / 5
            size = 10.0 ** math.floor(math.log10(rough))
            step = next(s * size for s in (1, 2, 5, 10) if s * size >= rough)
            first = math.ceil(self.low / step)
            found = [step * i for i in range(first, math.floor(self.high / step) + 1)]
        return [tick for tick in found if self.low <= tick <= self.high]


def colour(i):
    return COLOURS[i % len(COLOURS)]


def short(value):
    """A number as an axis shows it: three digits, thousands as k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def wrapped(words, width):
    """Lines of about `width` letters."""
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def text(x, y, content, anchor="start", size=12, weight="normal", fill=INK):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'font-weight="{weight}" fill="{fill}">{escape(str(content))}</text>')


def line(x1, y1, x2, y2, stroke, dash=""):
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{stroke}"{dashes}/>')
