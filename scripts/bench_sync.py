"""Copies, outages, limits: a full sync beside a native one, resuming after an outage, what the limits do."""

import os
import time

from bench_load import blast, hashes, sets
from bench_node import Failed, followed, online, streaming
from bench_rows import Row, interleave, ratio, row


def native_sync(bench, master):
    """Seconds from REPLICAOF until the link is up."""
    replica = bench.node("replica")
    began = time.perf_counter()
    replica.call("REPLICAOF", "127.0.0.1", master.port)
    online(replica)
    took = time.perf_counter() - began
    keys = replica.call("DBSIZE")
    if keys != master.call("DBSIZE"):
        raise Failed(f"the replica has {keys} keys")
    replica.kill()
    return {"s": took}


def our_sync(bench, source):
    """Seconds from DR.LINK until the target follows, the source's save of its snapshot included."""
    # A snapshot from before would be taken again: a write and no RDB make the source save one.
    source.call("DR.CUTLINK", "1") if source.status()["targets"] else None
    remove_rdb(source)
    target = bench.node("target", module=["service-id", "1"])
    began = time.perf_counter()
    target.call("DR.LINK", f"127.0.0.1:{source.endpoint}")
    streaming(target)
    took = time.perf_counter() - began
    keys = target.call("DBSIZE")
    if keys != source.call("DBSIZE"):
        raise Failed(f"the target has {keys} keys")
    target.kill()
    return {"s": took}


def remove_rdb(source):
    for name in ("dump.rdb", os.path.join("dr", "base.rdb")):
        path = os.path.join(source.folder, name)
        if os.path.exists(path):
            os.remove(path)


@row("full-sync")
def full_sync(bench):
    """A full copy to a new target beside a native full sync of the same data."""
    rounds = 3
    keys, count = bench.pick(400_000, 2_000_000), bench.pick(10_000, 20_000)
    rows = []
    loads = (("strings", f"{keys:,} strings of 100 B", sets(bench, keys * 4, keys=keys, name="full-sync-strings")),
             ("hashes", f"{count:,} hashes of 100 fields", hashes(bench, count)))
    for name, what, stream in loads:
        source, master = bench.source(), bench.node("master")
        pieces = list(stream)
        blast(source, pieces)
        blast(master, pieces)
        source.caught_up()
        seen = interleave({"ours": lambda: our_sync(bench, source), "native": lambda: native_sync(bench, master)},
                          rounds, warm_up=0)
        context = {"target, s": seen["ours"]["s"], "native replica, s": seen["native"]["s"]}
        rows.append(Row(f"full-sync-{name}", f"full sync of {what}: target / native replica",
                        ratio(seen, "ours", "native", "s"), 1.2, 1.0, context))
        bench.kill_all()
    return rows


@row("resume")
def resume(bench):
    """A target goes on after an outage: its rate, and what the source's main thread has to do with it."""
    n = bench.pick(400_000, 8_000_000)
    source = bench.source()
    target = bench.target(source)
    streaming(target)
    blast(source, sets(bench, 100_000))
    source.caught_up()
    followed(target, source.status()["op_id"])
    target.pause()
    began_op = source.status()["op_id"]
    for _ in range(max(1, n // 400_000)):
        blast(source, sets(bench, 400_000))
    source.caught_up()
    op = source.status()["op_id"]
    time.sleep(1)
    idle = source.main_ns()
    time.sleep(1)
    idle = source.main_ns() - idle
    busy, began = source.main_ns(), time.perf_counter()
    target.resume()
    followed(target, op, every=0.05)
    took = time.perf_counter() - began
    busy = source.main_ns() - busy
    log_mb = (op - began_op) / 2**20
    return [Row("resume-source", f"CPU of the source's main thread, % of one core, while {log_mb:,.0f} MB are resumed",
                busy / took / 1e7, 5.0, 2.0,
                {"idle source, %": idle / 1e7, "resumed MB/s": log_mb / took, "ops/s": n / took}, unit="%")]


def limited_copy(bench, argument, rate):
    """A source with such a limit, a target that has taken a copy from it, the copy's bytes and how long they took."""
    source = bench.source(args=(argument, str(rate)))
    blast(source, sets(bench, bench.pick(200_000, 800_000), keys=bench.pick(200_000, 800_000), name="limit"))
    source.caught_up()
    source.call("DR.SNAPSHOT")
    target = bench.target(source)
    target.wait("to receive a snapshot", lambda: target.status()["state"] == "snapshot", every=0.001)
    began = time.perf_counter()
    target.wait("to load the snapshot", lambda: target.status()["state"] not in ("snapshot", "connecting"), every=0.001)
    took = time.perf_counter() - began
    return source, target, os.path.getsize(os.path.join(source.folder, "dump.rdb")), took


def copy_row(name, argument, rate, snapshot, took):
    return Row(name, f"bytes/s of a snapshot, beyond the first second's credit / {argument}",
               (snapshot - rate) / took / rate, 1.1, None, {"snapshot MB": snapshot / 2**20, "s": took})


@row("limit")
def limit(bench):
    """What the limits let through: of a snapshot and of the log, and of a snapshot by its own limit."""
    rate = bench.pick(8, 20) * 2**20
    own, target, *copy = limited_copy(bench, "snapshot-max-bytes-per-sec", rate)
    rows = [copy_row("limit-snapshot-own", "snapshot-max-bytes-per-sec", rate, *copy)]
    target.kill()
    own.kill()
    source, target, *copy = limited_copy(bench, "link-max-bytes-per-sec", rate)
    rows.insert(0, copy_row("limit-snapshot", "link-max-bytes-per-sec", rate, *copy))
    streaming(target)
    followed(target, source.status()["op_id"])
    first = source.status()["op_id"]
    blast(source, sets(bench, bench.pick(300_000, 1_000_000)))
    source.caught_up()
    last = source.status()["op_id"]
    # Between a third and nine tenths: the credit of the first second and what sockets hold are then spent.
    marks = []
    for share in (0.34, 0.9):
        op = first + int((last - first) * share)
        followed(target, op, every=0.005)
        marks.append((time.perf_counter(), target.status()["applied_op_id"]))
    (from_time, from_op), (to_time, to_op) = marks
    rows.append(Row("limit-log", "bytes/s of catch-up / link-max-bytes-per-sec",
                    (to_op - from_op) / (to_time - from_time) / rate, 1.1, None,
                    {"log MB": (last - first) / 2**20}))
    return rows
