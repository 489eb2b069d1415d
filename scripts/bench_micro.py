"""The criterion benches in benches/: they run alone, and their figures go into the same table."""

import json
import os
import subprocess

from bench_node import TOP, Failed
from bench_rows import Figure, Row, row


def criterion(bench, target, needle):
    """Runs one bench program; returns id -> (seconds, (low, high), bytes a run)."""
    folder = os.path.join(bench.folder, "criterion")
    argv = ["cargo", "bench", "--quiet", "--bench", target, "--", "--noplot", "--measurement-time",
            str(bench.pick(1, 5)), "--warm-up-time", str(bench.pick(0.5, 3)), needle]
    done = subprocess.run(argv, cwd=TOP, env={**os.environ, "CRITERION_HOME": folder}, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise Failed(f"cargo bench --bench {target}: exit {done.returncode}\n{done.stdout[-1500:]}")
    found = {}
    for path, _, files in os.walk(folder):
        if os.path.basename(path) == "new" and "estimates.json" in files:
            with open(os.path.join(path, "estimates.json"), encoding="utf-8") as f:
                time = json.load(f)["median"]
            with open(os.path.join(path, "benchmark.json"), encoding="utf-8") as f:
                about = json.load(f)
            limits = time["confidence_interval"]
            size = (about.get("throughput") or {}).get("Bytes")
            found[about["full_id"]] = (time["point_estimate"] / 1e9,
                                       (limits["lower_bound"] / 1e9, limits["upper_bound"] / 1e9), size)
    return found


def rate(found, name):
    """GB/s of a bench that says how many bytes it takes."""
    seconds, (low, high), size = found[name]
    figure = Figure(size / seconds / 1e9)
    figure.rounds = (size / high / 1e9, size / low / 1e9)
    return figure


@row("codec")
def codec(bench):
    """Scanner and entries on one core, without a server."""
    # The rest is for those who work on it, and in the long run.
    found = criterion(bench, "codec", bench.pick("^(scan|decode)/", ""))
    rows = []
    for name, what in (("scan/set-100", "stream scanner, SETs of 100 B"), ("decode/16k", "entry decode, 16 KiB entries")):
        kin = [other for other in found if other != name and other.split("/")[0] == name.split("/")[0]]
        others = {f"{other}, GB/s": rate(found, other) for other in kin}
        rows.append(Row(name.replace("/", "-"), f"{what}, one core", rate(found, name), 1.0, 3.0, others, unit="GB/s", more=True))
    return rows


@row("open-log")
def open_log(bench):
    """Opening a log of 1,000 sealed segments."""
    found = criterion(bench, "log", "open")
    seconds, limits, _ = found["open/1000-sealed"]
    figure = Figure(seconds)
    figure.rounds = limits
    return [Row("open-log", "opening a log of 1,000 sealed segments", figure, 1.0, 0.2, unit="s")]
