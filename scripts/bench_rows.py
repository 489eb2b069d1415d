"""A row of the table, and how figures are taken: alternatives in turn, ratios within a round, medians with spread."""

import statistics

ROWS = {}   # name of a group -> function(bench) -> [Row]


def row(name):
    def register(function):
        ROWS[name] = function
        return function
    return register


class Figure(float):
    """A median that remembers its rounds."""

    rounds = ()

    @classmethod
    def of(cls, values):
        figure = cls(statistics.median(values))
        figure.rounds = tuple(values)
        return figure


class Row:
    """One line of the table. `floor` and `goal` are bounds for `value`, upper ones unless `more` says that more is better;
    a row without a floor tells a figure and has no verdict."""

    def __init__(self, name, what, value, floor=None, goal=None, context=None, unit="", more=False):
        self.name, self.what, self.value, self.floor, self.goal = name, what, value, floor, goal
        self.context, self.unit, self.more = context or {}, unit, more

    def verdict(self):
        if self.floor is None:
            return ""
        meets = (lambda bound: self.value >= bound) if self.more else (lambda bound: self.value <= bound)
        if self.goal is not None and meets(self.goal):
            return "goal"
        return "floor" if meets(self.floor) else "MISSED"

    def spread(self):
        rounds = getattr(self.value, "rounds", ())
        return f"{show(min(rounds))}..{show(max(rounds))}" if len(rounds) > 1 else ""

    def json(self):
        return {
            "name": self.name, "what": self.what, "value": float(self.value), "unit": self.unit, "floor": self.floor,
            "goal": self.goal, "more_is_better": self.more, "verdict": self.verdict(),
            "rounds": [float(v) for v in getattr(self.value, "rounds", ())],
            "context": {key: float(value) for key, value in self.context.items()},
        }


def show(value):
    if value is None:
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def interleave(cases, rounds, warm_up=1):
    """Runs each case once a round, in turn (the order is turned each round); returns case -> figure -> Figure. The first
    rounds warm up and are left out."""
    seen = {name: {} for name in cases}
    names = list(cases)
    for turn in range(rounds + warm_up):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            figures = cases[name]()
            if turn >= warm_up:
                for key, value in figures.items():
                    seen[name].setdefault(key, []).append(value)
    return {name: {key: Figure.of(values) for key, values in figures.items()} for name, figures in seen.items()}


def ratio(seen, one, other, figure):
    """Median of the ratios within each round."""
    pairs = zip(seen[one][figure].rounds, seen[other][figure].rounds)
    return Figure.of([a / b for a, b in pairs])
