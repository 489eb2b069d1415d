"""What capture costs the source: CPU of its main thread, latency of its clients, disk and memory."""

from bench_load import benchmark, blast, sets
from bench_node import followed, online, streaming
from bench_rows import Row, interleave, ratio, row


def cpu_per_op(node, n, settle, **load):
    """Nanoseconds of the main thread for each op, and ops per second. What the server has still to send when the last
    client has its reply counts, too: `settle` waits for it."""
    before = node.main_ns()
    rate = benchmark(node, n, **load)["rps"]
    settle()
    return {"ns": (node.main_ns() - before) / n, "rps": rate}


@row("source-cpu")
def source_cpu(bench):
    """Main-thread CPU per SET at pipeline 16: bare, captured, with an AOF, with a native replica."""
    n, rounds = bench.pick(400_000, 2_000_000), bench.pick(7, 11)
    bare, aof = bench.node("bare"), bench.node("aof", "appendonly", "yes", "appendfsync", "everysec")
    master, source = bench.node("master"), bench.source()
    replica = bench.replica(master)
    online(replica)
    cases = {
        "bare": lambda: cpu_per_op(bare, n, lambda: None),
        "capture": lambda: cpu_per_op(source, n, source.caught_up),
        "aof": lambda: cpu_per_op(aof, n, lambda: None),
        "replica": lambda: cpu_per_op(master, n, lambda: replicated_to(master, replica)),
    }
    seen = interleave(cases, rounds)
    against = {name: ratio(seen, name, "bare", "ns") for name in ("capture", "aof", "replica")}
    context = {
        "appendonly everysec / bare": against["aof"], "one native replica / bare": against["replica"],
        "bare ns per SET": seen["bare"]["ns"], "rps, capture / bare": ratio(seen, "capture", "bare", "rps"),
        "rps, native replica / bare": ratio(seen, "replica", "bare", "rps"),
    }
    status = source.status()
    disk = status["oplog_bytes"] / (status["op_id"] - status["oldest_op_id"] + 1)
    return [
        Row("source-cpu", "main-thread CPU per SET, pipeline 16: capture / bare", against["capture"], 1.15, 1.10, context),
        Row("source-cpu-aof", "the same: capture / appendonly everysec", ratio(seen, "capture", "aof", "ns"), 1.0, 1.0),
        Row("source-cpu-replica", "the same: capture / one native replica", ratio(seen, "capture", "replica", "ns"), 1.0, 1.0),
        Row("log-bytes", "log bytes on disk per stream byte, pipeline 16, 50 clients", disk, 1.10, 1.03),
    ]


def replicated_to(master, replica):
    offset = master.offset()
    replica.wait(f"to reach offset {offset}", lambda: replica.replica_offset() >= offset, every=0.002)


@row("source-targets")
def source_targets(bench):
    """The same with 15 targets following, and native replication with 15 replicas beside it."""
    n, rounds = bench.pick(60_000, 500_000), bench.pick(3, 7)
    alone, source = bench.source(), bench.source()
    bare, master = bench.node("bare"), bench.node("master")
    targets = [bench.target(source, i) for i in range(1, 16)]
    for target in targets:
        streaming(target)
    replicas = [bench.replica(master) for _ in range(15)]
    for replica in replicas:
        online(replica)

    def all_targets():
        source.caught_up()
        op = source.status()["op_id"]
        for target in targets:
            followed(target, op, every=0.02)

    def all_replicas():
        for replica in replicas:
            replicated_to(master, replica)
    cases = {
        "bare": lambda: cpu_per_op(bare, n, lambda: None),
        "capture": lambda: cpu_per_op(alone, n, alone.caught_up),
        "capture15": lambda: cpu_per_op(source, n, all_targets),
        "native15": lambda: cpu_per_op(master, n, all_replicas),
    }
    seen = interleave(cases, rounds)
    context = {"native, 15 replicas / bare": ratio(seen, "native15", "bare", "ns"),
               "capture and 15 targets / bare": ratio(seen, "capture15", "bare", "ns")}
    return [Row("source-targets", "main-thread CPU per SET: 15 targets following / none",
                ratio(seen, "capture15", "capture", "ns"), 1.05, 1.02, context)]


@row("latency")
def latency(bench):
    """Latency of clients without pipelining."""
    n, rounds = bench.pick(40_000, 300_000), bench.pick(7, 11)
    bare, source = bench.node("bare"), bench.source()

    def one(node):
        seen = benchmark(node, n, clients=8, pipeline=1)
        return {"p50": seen["p50"], "p99": seen["p99"]}
    # Two of the same: what they differ by is the noise that the third has to be seen in.
    again = bench.node("bare")
    seen = interleave({"bare": lambda: one(bare), "capture": lambda: one(source), "again": lambda: one(again)}, rounds)
    noise = {p: ratio(seen, "again", "bare", p) for p in ("p50", "p99")}
    source.caught_up()
    status = source.status()
    disk = status["oplog_bytes"] / (status["op_id"] - status["oldest_op_id"] + 1)
    return [
        Row("latency-p50", "pipeline 1, 8 clients, p50: capture / bare", ratio(seen, "capture", "bare", "p50"), 1.05, 1.0,
            {"a second bare server / bare": noise["p50"], "bare p50, ms": seen["bare"]["p50"]}),
        Row("latency-p99", "the same, p99", ratio(seen, "capture", "bare", "p99"), 1.10, 1.0,
            {"a second bare server / bare": noise["p99"], "bare p99, ms": seen["bare"]["p99"]}),
        Row("log-bytes-p1", "log bytes on disk per stream byte, pipeline 1, 8 clients", disk, 1.10, 1.03),
    ]


@row("memory-source")
def memory_source(bench):
    """Memory that 15 stopped targets cost the source, and what 15 stopped replicas cost a native master."""
    n = bench.pick(400_000, 4_000_000)
    source, master = bench.source(), bench.node("master")
    targets = [bench.target(source, i) for i in range(1, 16)]
    for target in targets:
        streaming(target)
    replicas = [bench.replica(master) for _ in range(15)]
    for replica in replicas:
        online(replica)
    stream = f"sets-{n}-1000-1000"
    for node in (source, master):  # The dataset and the backlog have their size before the measurement.
        blast(node, sets(bench, 70_000, keys=1000, size=1000, name="warm-up"))
    source.caught_up()
    for target in targets:
        followed(target, source.status()["op_id"])
    replicated_to(master, replicas[-1])
    before = source.anon_bytes(), master.anon_bytes()
    for node in targets + replicas:
        node.pause()
    blast(source, sets(bench, n // 10, keys=1000, size=1000, name=stream))
    source.caught_up()
    blast(master, sets(bench, n // 10, keys=1000, size=1000, name=stream))
    after = source.anon_bytes(), master.anon_bytes()
    for node in targets + replicas:
        node.resume()
    mb = [(a - b) / 2**20 for a, b in zip(after, before)]
    return [Row("memory-source", "MB at a source with 15 stopped targets", max(mb[0], 0.0), 64, 32,
                {"MB at a native master with 15 stopped replicas": max(mb[1], 0.0), "stream MB": n // 10 * 1045 / 2**20},
                unit="MB")]
