"""A small writer of SVG: lines over one axis, and bars with marks. No library, readable in light and dark."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 80, 170, 40, 56
COLORS = ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#9c6b4e")
GREY = "#888888"


def head(width, height, title):
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{GREY}">',
        f'<text x="{width / 2}" y="22" text-anchor="middle" font-size="15">{escape(title)}</text>',
    ]


def text(x, y, what, anchor="middle", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(str(what))}</text>'


def stroke(x1, y1, x2, y2, color=GREY, width=1.0, dash=""):
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
            f'stroke-width="{width}"{dashes}/>')


def short(value):
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def steps(top):
    """Round marks from 0 to `top` or just above."""
    raw = top / 5 or 1
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= raw)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def lines(curve):
    """One line for each alternative; y begins at 0, so that flat looks flat."""
    out = head(WIDTH, HEIGHT, curve.title)
    scale = (lambda v: math.log10(max(v, 1e-9))) if curve.log_x and min(curve.x) > 0 else float
    low, high = scale(min(curve.x)), scale(max(curve.x))
    marks = steps(max(max(values) for values in curve.lines.values()))
    across = lambda v: LEFT + (scale(v) - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)
    up = lambda v: HEIGHT - BOTTOM - v / marks[-1] * (HEIGHT - TOP - BOTTOM)
    for mark in marks:
        out.append(stroke(LEFT, up(mark), WIDTH - RIGHT, up(mark), GREY, 0.3))
        out.append(text(LEFT - 8, up(mark) + 4, short(mark), "end"))
    for x in curve.x:
        out.append(stroke(across(x), HEIGHT - BOTTOM, across(x), HEIGHT - BOTTOM + 4))
        out.append(text(across(x), HEIGHT - BOTTOM + 18, short(x)))
    out.append(stroke(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM))
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, curve.x_label))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out.append(text(18, middle, curve.y_label, "middle", f'transform="rotate(-90 18 {middle})"'))
    for i, (name, values) in enumerate(curve.lines.items()):
        color = COLORS[i % len(COLORS)]
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in zip(curve.x, values))
        out.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        out += [f'<circle cx="{across(x):.1f}" cy="{up(y):.1f}" r="3" fill="{color}"/>' for x, y in zip(curve.x, values)]
        y = TOP + 10 + 18 * i
        out.append(stroke(WIDTH - RIGHT + 12, y, WIDTH - RIGHT + 30, y, color, 2))
        out.append(text(WIDTH - RIGHT + 36, y + 4, name, "start"))
    return "\n".join(out + ["</svg>", ""])


def bars(title, rows):
    """A bar for each row: its figure over its floor (1.0, right of it is worse), its goal as a mark."""
    height = 60 + 22 * len(rows)
    out = head(WIDTH, height, title)
    left, right, most = 180, 60, 2.0
    across = lambda v: left + min(v, most) / most * (WIDTH - left - right)
    for i, (name, value, goal, verdict) in enumerate(rows):
        y = 40 + 22 * i
        color = {"goal": COLORS[3], "floor": COLORS[1]}.get(verdict, COLORS[2])
        out.append(text(left - 8, y + 12, name, "end"))
        out.append(f'<rect x="{left}" y="{y}" width="{across(value) - left:.1f}" height="15" fill="{color}"/>')
        if goal:
            out.append(stroke(across(goal), y - 2, across(goal), y + 17, GREY, 2))
        out.append(text(across(value) + 6, y + 12, f"{value:.2f}", "start"))
    out.append(stroke(across(1.0), 34, across(1.0), height - 14, GREY, 1, "4 3"))
    return "\n".join(out + ["</svg>", ""])
