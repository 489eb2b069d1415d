"""How cost grows with the number of keys, the size of values, targets, the length of the log, and lag."""

import time

from bench_load import blast, sets
from bench_node import followed, online, streaming
from bench_report import Curve
from bench_rows import interleave, row
from bench_source import cpu_per_op, replicated_to
from bench_target import pairs


@row("growth")
def growth(bench):
    """How cost grows: tables and plots."""
    curves = []
    for part in (by_keys, by_size, by_targets, by_log, by_lag):
        curves.append(part(bench))
        bench.kill_all()
    return curves


def three(bench):
    """A bare server, a source, and a master with one native replica."""
    bare, source, master = bench.node("bare"), bench.source(), bench.node("master")
    replica = bench.replica(master)
    online(replica)
    return bare, source, master, replica


def cost(nodes, n, rounds, **load):
    bare, source, master, replica = nodes
    seen = interleave({
        "bare": lambda: cpu_per_op(bare, n, lambda: None, **load),
        "capture": lambda: cpu_per_op(source, n, source.caught_up, **load),
        "native replica": lambda: cpu_per_op(master, n, lambda: replicated_to(master, replica), **load),
    }, rounds)
    return {name: figures["ns"] for name, figures in seen.items()}


def collect(points):
    return {name: [point[name] for point in points] for name in points[0]}


def by_keys(bench):
    xs = [10_000, 100_000, 1_000_000] + ([4_000_000] if bench.full else [])
    points, nodes = [], three(bench)
    for keys in xs:
        for node in nodes[:3]:
            blast(node, sets(bench, keys * 2, keys=keys, name=f"grow-{keys}"))
        nodes[1].caught_up()
        points.append(cost(nodes, bench.pick(100_000, 300_000), 3, keys=keys))
    return Curve("growth-keys", "Main-thread CPU per SET over the number of keys", "keys", "ns per SET", xs, collect(points))


def by_size(bench):
    xs, points, nodes = [16, 100, 1000, 10_000, 64_000], [], three(bench)
    for size in xs:
        n = max(5_000, min(200_000, 400_000_000 // (size + 1000)))
        points.append(cost(nodes, n, 3, size=size, keys=2000))
    return Curve("growth-size", "Main-thread CPU per SET over the size of values", "bytes", "ns per SET", xs, collect(points))


def by_targets(bench):
    xs, points, n = [0, 1, 3, 7, 15], [], bench.pick(50_000, 200_000)
    source, master = bench.source(), bench.node("master")
    targets, replicas = [], []
    for count in xs:
        while len(targets) < count:
            targets.append(bench.target(source, len(targets) + 1))
            streaming(targets[-1])
            replicas.append(bench.replica(master))
            online(replicas[-1])

        def targets_settle():
            source.caught_up()
            op = source.status()["op_id"]
            for target in targets:
                followed(target, op, every=0.02)

        def replicas_settle():
            for replica in replicas:
                replicated_to(master, replica)
        seen = interleave({"targets of a source": lambda: cpu_per_op(source, n, targets_settle),
                           "native replicas": lambda: cpu_per_op(master, n, replicas_settle)}, 3)
        points.append({name: figures["ns"] for name, figures in seen.items()})
    return Curve("growth-targets", "Main-thread CPU per SET over the number of followers", "followers", "ns per SET", xs,
                 collect(points), log_x=False)


def by_log(bench):
    """Time until a target that asks for an old op gets going, and until a source has started again."""
    xs = [64, 256, 1024] if bench.full else [16, 64]
    resumed, started = [], []
    for mb in xs:
        source = bench.source("save", "3600 1", args=("segment-size", "16mb"))
        target = bench.target(source)
        streaming(target)
        target.pause()
        for _ in range(mb // 16):
            blast(source, sets(bench, 120_000, keys=10_000))
        source.caught_up()
        began = time.perf_counter()
        target.resume()
        first = target.status()["applied_op_id"]
        target.wait("to apply something", lambda: target.status()["applied_op_id"] > first, every=0.001)
        resumed.append(time.perf_counter() - began)
        target.kill()
        source.call("DR.SNAPSHOT")
        source.client.close()
        source.process.terminate()
        source.process.wait(120)
        bench.nodes.remove(source)
        began = time.perf_counter()
        source.start()
        source.wait("to capture", lambda: source.status()["state"] == "capturing", every=0.002)
        started.append(time.perf_counter() - began)
        source.kill()
    return Curve("growth-log", "Resuming and starting over the length of the log", "MB of log", "seconds", xs,
                 {"until a target that was away applies": resumed, "clean restart of the source": started})


def by_lag(bench):
    """Rate of catch-up over how much there is to catch up on."""
    xs = [50_000, 200_000, 800_000] + ([3_200_000] if bench.full else [])
    ours, native = pairs(bench)
    points = []
    for n in xs:
        stream = f"lag-{n}"
        seen = interleave({"target": lambda: ours.catch_up(sets(bench, n, name=stream), n),
                           "native replica": lambda: native.catch_up(sets(bench, n, name=stream), n)}, 2, warm_up=0)
        points.append({name: figures["rate"] for name, figures in seen.items()})
    return Curve("growth-lag", "Rate of catch-up over the ops to catch up on", "ops behind", "ops per second", xs, collect(points))
