"""The table on the terminal and in docs/performance.md, and what goes into plots."""

import os

import bench_plot
from bench_rows import show

BEGIN, END = "<!-- bench:begin {} -->", "<!-- bench:end {} -->"


class Curve:
    """How figures grow with something: x values and one list of y values for each line."""

    def __init__(self, name, title, x_label, y_label, x, lines, log_x=True):
        self.name, self.title, self.x_label, self.y_label = name, title, x_label, y_label
        self.x, self.lines, self.log_x = x, lines, log_x

    def json(self):
        return {"name": self.name, "title": self.title, "x_label": self.x_label, "y_label": self.y_label, "x": self.x,
                "lines": {name: [float(v) for v in values] for name, values in self.lines.items()}}

    def markdown(self):
        out = [f"| {self.x_label} | " + " | ".join(self.lines) + " |", "|---|" + "---|" * len(self.lines)]
        for i, x in enumerate(self.x):
            out.append(f"| {show(x)} | " + " | ".join(show(values[i]) for values in self.lines.values()) + " |")
        return f"**{self.title}** ({self.y_label})\n\n" + "\n".join(out)


def bound(row, value):
    if value is None:
        return ""
    return ("≥ " if row.more else "≤ ") + show(value)


def line(row):
    unit = f" {row.unit}" if row.unit else ""
    text = f"  {row.verdict():<7} {row.name}: {show(row.value)}{unit}  ({row.spread()})"
    return text + "".join(f"\n            {key}: {show(value)}" for key, value in row.context.items())


def table(rows):
    head = ("name", "what", "measured", "spread", "floor", "goal", "verdict")
    cells = [head] + [(r.name, r.what, show(r.value) + (f" {r.unit}" if r.unit else ""), r.spread(), bound(r, r.floor),
                       bound(r, r.goal), r.verdict()) for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)


def plots(rows, curves, folder):
    os.makedirs(folder, exist_ok=True)

    def write(name, svg):
        with open(os.path.join(folder, name + ".svg"), "w", encoding="utf-8") as out:
            out.write(svg)
    if rows:
        write("overview", bench_plot.bars("Measured against floor (1.0) and goal", [
            (r.name, r.value / r.floor if not r.more else r.floor / r.value,
             None if not r.goal else (r.goal / r.floor if not r.more else r.floor / r.goal), r.verdict())
            for r in rows if r.floor and r.value]))
    for curve in curves:
        write(curve.name, bench_plot.lines(curve))


def markdown(path, run, rows, curves, args):
    """Replaces what stands between the markers of this run's scale and server."""
    key = f"{run['scale']} {run['server']}"
    command = f"scripts/bench --{run['scale']} --server {run['server']}"
    if args.only:
        command += " --only " + " ".join(args.only)
    m = run["machine"]
    out = [f"`{command}`, {m['date']}, {m['cores']} cores ({m['cpu']}), load {m['load']:.1f} at the start, {m['seconds']} s.", ""]
    if rows:
        out += ["| what | measured | spread | floor | goal | verdict |", "|---|---|---|---|---|---|"]
    for r in rows:
        verdict = f"**{r.verdict()}**" if r.verdict() == "MISSED" else r.verdict()
        unit = f" {r.unit}" if r.unit else ""
        out.append(f"| {r.what} | {show(r.value)}{unit} | {r.spread()} | {bound(r, r.floor)} | {bound(r, r.goal)} | {verdict} |")
        for name, value in r.context.items():
            out.append(f"| – {name} | {show(value)} | | | | |")
    for curve in curves:
        out += ["", curve.markdown(), "", f"![{curve.title}](plots/{curve.name}.svg)"]
    block = "\n".join([BEGIN.format(key), "", *out, "", END.format(key)])
    text = ""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            text = f.read()
    begin, end = text.find(BEGIN.format(key)), text.find(END.format(key))
    if 0 <= begin < end:
        text = text[:begin] + block + text[end + len(END.format(key)):]
    else:
        text = text.rstrip("\n") + f"\n\n{block}\n"
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)

