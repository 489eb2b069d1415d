"""What capture costs the source: CPU of its main thread, latency of its clients, disk and memory."""

from bench_load import benchmark, blast, sets
from bench_node import Failed, followed, online, streaming
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
    unread = with_backlog(bench)
    cases = {
        "bare": lambda: cpu_per_op(bare, n, lambda: None),
        "capture": lambda: cpu_per_op(source, n, source.caught_up),
        "backlog": lambda: cpu_per_op(unread, n, lambda: None),
        "aof": lambda: cpu_per_op(aof, n, lambda: None),
        "replica": lambda: cpu_per_op(master, n, lambda: replicated_to(master, replica)),
    }
    seen = interleave(cases, rounds)
    against = {name: ratio(seen, name, "bare", "ns") for name in ("capture", "backlog", "aof", "replica")}
    context = {
        "a replication backlog that nobody reads / bare": against["backlog"],
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


def with_backlog(bench):
    """A server whose replica has gone: it goes on writing its replication stream, to nobody. What reads that stream, however
    it does, cannot cost less."""
    node = bench.node("backlog")
    replica = bench.replica(node)
    online(replica)
    replica.kill()
    node.wait("to see its replica go", lambda: node.info("replication")["connected_slaves"] == "0")
    if node.info("replication")["repl_backlog_active"] != "1":
        raise Failed("the backlog has gone with the replica")
    return node


def replicated_to(master, replica):
    offset = master.offset()
    replica.wait(f"to reach offset {offset}", lambda: replica.replica_offset() >= offset, every=0.002)


@row("source-targets")
def source_targets(bench):
    """The same with 15 targets following, and native replication with 15 replicas beside it."""
    n, rounds = bench.pick(150_000, 500_000), bench.pick(3, 7)
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
    """Latency of clients without pipelining, at a steady rate and flat out."""
    rate, rounds = 20_000, bench.pick(7, 11)
    bare, source = bench.node("bare"), bench.source()
    # Two of the same: what they differ by is the noise that the third has to be seen in.
    again = bench.node("bare")
    nodes, loads = {"bare": bare, "capture": source, "again": again, "backlog": with_backlog(bench)}, {
        "rate": (f"pipeline 1, 8 clients, {rate:,}/s", bench.pick(20_000, 200_000), rate),
        "flat-out": ("pipeline 1, 8 clients, flat out", bench.pick(40_000, 300_000), 0)}
    rows = []
    for name, (what, n, at_rate) in loads.items():
        seen = interleave({key: lambda node=node: benchmark(node, n, clients=8, pipeline=1, rate=at_rate)
                           for key, node in nodes.items()}, rounds)
        if at_rate and seen["bare"]["rps"] < 0.95 * at_rate:
            raise Failed(f"the machine does not reach {at_rate} requests per second")
        for p, floor in (("p50", 1.05), ("p99", 1.10)):
            rows.append(Row(f"latency-{name}-{p}", f"{what}, {p}: capture / bare", ratio(seen, "capture", "bare", p), floor, 1.0,
                            {"a second bare server / bare": ratio(seen, "again", "bare", p),
                             "a replication backlog that nobody reads / bare": ratio(seen, "backlog", "bare", p),
                             f"bare {p}, ms": seen["bare"][p], "requests/s, capture / bare": ratio(seen, "capture", "bare", "rps")}))
    source.caught_up()
    status = source.status()
    disk = status["oplog_bytes"] / (status["op_id"] - status["oldest_op_id"] + 1)
    return rows + [Row("log-bytes-p1", "log bytes on disk per stream byte, pipeline 1, 8 clients", disk, 1.10, 1.03)]


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
