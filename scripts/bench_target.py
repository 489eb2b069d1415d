"""What a target does with a stream: how fast it catches up, what its readers feel of it, how far behind it is."""

import os
import subprocess
import sys
import time

from bench_load import blast, mixed, sets
from bench_node import TOP, Failed, followed, online, replicated, streaming
from bench_rows import Figure, Row, interleave, ratio, row


class Probe:
    """A process of bench_probe.py."""

    def __init__(self, *args):
        path = os.path.join(TOP, "scripts", "bench_probe.py")
        self.process = subprocess.Popen([sys.executable, path, *map(str, args)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, bufsize=1)

    def line(self):
        text = self.process.stdout.readline()
        if not text:
            raise Failed("a probe has ended without a figure")
        return text.strip()

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return [float(ms) for ms in self.line().split()]

    def end(self):
        self.process.stdin.close()
        self.process.wait(30)


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p))]


class Pair:
    """A leader and a follower that can be held back and let go."""

    def __init__(self, leader, follower, reach):
        self.leader, self.follower, self.reach = leader, follower, reach
        self.rounds = 0

    def level(self):
        self.reach(self.leader, self.follower)

    def catch_up(self, stream, n, probe=None):
        """Holds the follower, sends the stream to the leader, and measures the follower from when it is let go."""
        self.level()
        self.rounds += 1
        self.follower.pause()
        try:
            blast(self.leader, stream)
            self.leader.call("SET", "bench:end", f"round {self.rounds}")
            if self.leader.module is not None:
                self.leader.caught_up()
        finally:
            before = self.follower.main_ns()
            began = time.perf_counter()
            self.follower.resume()
        if probe:
            probe.ask()
        # The last write becomes visible: asked for alike at both, and finer than any status.
        end = f"round {self.rounds}".encode()
        self.follower.wait("to have the last write", lambda: self.follower.call("GET", "bench:end") == end, every=0.001)
        took = time.perf_counter() - began
        figures = {"rate": n / took, "ns": (self.follower.main_ns() - before) / n}
        if probe:
            # The first read was held up by the pause itself.
            figures["p99"] = percentile(probe.ask(), 0.99)
        return figures


def pairs(bench):
    source, master = bench.source(), bench.node("master")
    target, replica = bench.target(source), bench.replica(master)
    streaming(target)
    online(replica)

    def reach_op(leader, follower):
        leader.caught_up()
        followed(follower, leader.status()["op_id"])
    ours = Pair(source, target, reach_op)
    return ours, Pair(master, replica, lambda m, r: replicated(r, m.offset()))


@row("catch-up")
def catch_up(bench):
    """A target and a native replica catch up on the same stream; readers at both."""
    n, rounds = bench.pick(300_000, 2_000_000), bench.pick(3, 5)
    ours, native = pairs(bench)
    floor = 0.65 if bench.server == "redis-6.0" else 0.8
    rows = []
    probes = [Probe("read", ours.follower.port), Probe("read", native.follower.port)]
    for probe in probes:
        probe.line()
    time.sleep(1)
    idle = [percentile(probe.ask(), 0.99) for probe in probes]
    for name, stream in (("sets", sets), ("mixed", mixed)):
        seen = interleave({
            "ours": lambda: ours.catch_up(stream(bench, n), n, probes[0]),
            "native": lambda: native.catch_up(stream(bench, n), n, probes[1]),
        }, rounds)
        context = {
            "main-thread CPU per op, target / native replica": ratio(seen, "ours", "native", "ns"),
            "target, ops/s": seen["ours"]["rate"], "native replica, ops/s": seen["native"]["rate"],
        }
        what = "plain SETs" if name == "sets" else "a mixed stream"
        rows.append(Row(f"catch-up-{name}", f"ops/s of catch-up, {what}: target / native replica",
                        ratio(seen, "ours", "native", "rate"), floor, 1.0, context, more=True))
        rows.append(Row(f"catch-up-reads-{name}", f"p99 of reads at a target that catches up, {what}", seen["ours"]["p99"],
                        max(3.0, 3 * idle[0]), seen["native"]["p99"],
                        {"native replica, ms": seen["native"]["p99"], "idle target, ms": idle[0]}, unit="ms"))
    for probe in probes:
        probe.end()
    return rows


@row("memory-target")
def memory_target(bench):
    """Memory of a target while it catches up, beyond what it has when it has caught up."""
    n = bench.pick(100_000, 1_000_000)
    ours, _ = pairs(bench)
    blast(ours.leader, sets(bench, 70_000, keys=1000, size=1000, name="warm-up"))
    ours.level()
    before = ours.follower.anon_bytes()
    ours.follower.pause()
    blast(ours.leader, sets(bench, n, keys=1000, size=1000, name=f"sets-{n}-1000-1000"))
    ours.leader.caught_up()
    op = ours.leader.status()["op_id"]
    ours.follower.resume()
    peak = before
    until = time.monotonic() + 600
    while ours.follower.status()["applied_op_id"] < op:
        peak = max(peak, ours.follower.anon_bytes())
        if time.monotonic() > until:
            raise Failed("the target does not catch up")
        time.sleep(0.002)
    return [Row("memory-target", "MB at a target while it catches up", (peak - before) / 2**20, 64, 32,
                {"stream MB": n * 1045 / 2**20}, unit="MB")]


@row("lag")
def lag(bench):
    """From the source's reply to a write until the target tells of it, at 50,000 writes a second."""
    n, rounds = bench.pick(600, 5000), bench.pick(3, 5)
    ours, native = pairs(bench)
    for pair in (ours, native):
        pair.follower.call("CONFIG", "SET", "notify-keyspace-events", "K$")

    def one(pair):
        pair.level()
        pacer = Probe("pace", pair.leader.port, 50_000)
        pacer.line()
        probe = Probe("lag", pair.leader.port, pair.follower.port, n, 0.002)
        seen = [float(ms) for ms in probe.line().split()]
        probe.end()
        pacer.process.stdin.close()
        rate = float(pacer.line())
        pacer.process.wait(30)
        return {"p50": percentile(seen, 0.5), "p99": percentile(seen, 0.99), "rate": rate}
    seen = interleave({"ours": lambda: one(ours), "native": lambda: one(native)}, rounds, warm_up=0)
    return [
        Row("lag-p50", "steady lag at 50,000 writes/s, p50", seen["ours"]["p50"], 3, 1,
            {"native replica, ms": seen["native"]["p50"], "writes/s": seen["ours"]["rate"]}, unit="ms"),
        Row("lag-p99", "the same, p99", Figure.of(seen["ours"]["p99"].rounds), 20, 5,
            {"native replica, ms": seen["native"]["p99"]}, unit="ms"),
    ]
