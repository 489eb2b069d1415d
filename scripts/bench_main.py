"""scripts/bench: measures redisdr beside a bare server, an AOF and native replicas, as ratios within one run.

Each figure is taken in rounds in which the alternatives take turns on the same machine; the table shows medians of the
ratios within each round. Only ratios mean something on another machine, and only where both ran in the same run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import bench_compression  # noqa: F401  (each registers its rows)
import bench_growth  # noqa: F401
import bench_micro  # noqa: F401
import bench_source  # noqa: F401
import bench_stalls  # noqa: F401
import bench_sync  # noqa: F401
import bench_target  # noqa: F401
import bench_report as report
from bench_node import TOP, Bench, Failed
from bench_rows import ROWS, Row

# What --quick leaves out.
LONG = ("growth", "stalls")


def machine():
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
        models = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    return {"cpu": models[0] if models else "unknown", "cores": os.cpu_count(), "kernel": os.uname().release,
            "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}


def build(given, names):
    """The module, the load generator, and the benches without a server where they are asked for."""
    cargo = ["cargo", "build", "--release", "--quiet"]
    out = os.path.join(TOP, os.environ.get("CARGO_TARGET_DIR", "target"), "release")
    subprocess.run(cargo + ["--example", "bench_load"], cwd=TOP, check=True)
    if not given:
        subprocess.run(cargo, cwd=TOP, check=True)
    if {"codec", "open-log"} & set(names):
        subprocess.run(["cargo", "bench", "--quiet", "--no-run", "--bench", "codec", "--bench", "log"], cwd=TOP, check=True)
    return os.path.abspath(given or os.path.join(out, "libredisdr.so")), os.path.join(out, "examples", "bench_load")


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument("--quick", action="store_true", help="small sizes, below 5 minutes (the default)")
    scale.add_argument("--full", action="store_true", help="large sizes and growth; takes an hour or so, unattended")
    scale.add_argument("--list", action="store_true", help="print the names for --only")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these groups of rows")
    parser.add_argument("--server", default="redis-7.0", help="one of scripts/servers --names (default: redis-7.0)")
    parser.add_argument("--module", metavar="FILE", help="take this libredisdr.so and build nothing")
    parser.add_argument("--json", metavar="FILE", help="write all figures with their rounds")
    parser.add_argument("--plots", metavar="DIR", help="write plots (SVG)")
    parser.add_argument("--markdown", metavar="FILE", help="put the table between the markers in this file")
    args = parser.parse_args()
    unknown = [name for name in args.only or () if name not in ROWS]
    if unknown:
        parser.error(f"no rows named {' '.join(unknown)}; there are {' '.join(ROWS)}")
    return args


def measure(bench, names):
    rows, failed = [], []
    for name in names:
        began = time.monotonic()
        try:
            found = ROWS[name](bench)
        except (Failed, OSError, subprocess.SubprocessError) as error:
            failed.append(name)
            print(f"{name}: NOT MEASURED: {error}", file=sys.stderr, flush=True)
            found = []
        finally:
            bench.kill_all()
        rows += found
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        for one in found:
            if isinstance(one, Row):
                print(report.line(one), flush=True)
    return rows, failed


def main():
    args = arguments()
    if args.list:
        for name, function in ROWS.items():
            print(f"{name:<16} {(function.__doc__ or '').strip().splitlines()[0]}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = args.only or [name for name in ROWS if args.full or name not in LONG]
    about = machine()
    bench = Bench(args.server, *build(args.module, names), args.full)
    began = time.monotonic()
    try:
        rows, failed = measure(bench, names)
    except KeyboardInterrupt:
        return 130
    finally:
        bench.close()
    about["seconds"] = round(time.monotonic() - began)
    run = {"server": args.server, "scale": "full" if args.full else "quick", "machine": about}
    table, curves = [r for r in rows if isinstance(r, Row)], [r for r in rows if not isinstance(r, Row)]
    print("\n" + report.table(table))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as out:
            json.dump({**run, "rows": [r.json() for r in table], "curves": [c.json() for c in curves]}, out, indent=1)
            out.write("\n")
    if args.plots:
        report.plots(table, curves, args.plots)
    if args.markdown:
        report.markdown(args.markdown, run, table, curves, args)
    missed = [r.name for r in table if r.verdict() == "MISSED"]
    if missed:
        print("misses its floor: " + ", ".join(missed))
    if failed:
        print("not measured: " + ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
