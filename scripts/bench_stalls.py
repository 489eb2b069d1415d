"""The longest turn of a target's main thread while it takes a copy of one large value."""

import os
import time

from bench_node import Failed, streaming
from bench_rows import Row, row

FILL = "for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do redis.call(%s) end"
# How a large value of each kind is made at the source, a hundred thousand elements a call.
KINDS = {
    "list": FILL % "'RPUSH', KEYS[1], 'element:' .. i",
    "set": FILL % "'SADD', KEYS[1], 'element:' .. i",
    "zset": FILL % "'ZADD', KEYS[1], i * 7919 % 1000003, 'element:' .. i",
    "hash": FILL % "'HSET', KEYS[1], 'field:' .. i, i",
    "stream": FILL % "'XADD', KEYS[1], '1-' .. i, 'field', i",
}
STEP = 100_000


def fill(source, kind, elements):
    for first in range(1, elements + 1, STEP):
        last = min(first + STEP - 1, elements)
        source.call("EVAL", KINDS[kind], 1, "large", first, last)
    source.caught_up()


def fill_string(source, size):
    piece = 32 * 2**20
    for at in range(0, size, piece):
        source.call("SETRANGE", "large", at, os.urandom(min(piece, size - at)))
    source.caught_up()


def turns(bench, source):
    """CPU time of the target's main thread between two replies to a PING, from the link to the end of the copy; ms."""
    target = bench.node("target", module=["service-id", "1"])
    target.call("DR.LINK", f"127.0.0.1:{source.endpoint}")
    seen, waits, looked = [], [], 0.0
    before = target.main_ns()
    while True:
        began = time.perf_counter()
        try:
            target.call("PING")
        except Failed:
            pass  # -LOADING is an answer, too.
        waits.append(1e3 * (time.perf_counter() - began))
        now = target.main_ns()
        seen.append((now - before) / 1e6)
        before = now
        if time.perf_counter() - looked > 0.5:
            looked = time.perf_counter()
            if target.status()["state"] == "streaming":
                break
            before = target.main_ns()
        time.sleep(0.001)
    if target.call("DBSIZE") != 1:
        raise Failed("the copy has not arrived")
    return seen, waits


def measure(bench, name, what, make):
    source = bench.source()
    make(source)
    source.call("DR.SNAPSHOT")
    began = time.perf_counter()
    seen, waits = turns(bench, source)
    took = time.perf_counter() - began
    bench.kill_all()
    context = {
        "turns": len(seen), "above 20 ms": sum(s > 20 for s in seen), "above 50 ms": sum(s > 50 for s in seen),
        "longest wait for a reply, ms": max(waits), "s": took,
    }
    return Row(f"stall-{name}", f"main-thread CPU between two PINGs at most, copy of {what}", max(seen), 50.0, 20.0,
               context, unit="ms")


@row("stalls")
def stalls(bench):
    """The longest turn of a target's main thread while it takes a copy of one large value."""
    elements, size = bench.pick(1_000_000, 10_000_000), bench.pick(64, 512) * 2**20
    rows = [measure(bench, kind, f"a {kind} of {elements:,} elements", lambda s, k=kind: fill(s, k, elements))
            for kind in KINDS]
    text = measure(bench, "string", f"a string of {size >> 20} MB", lambda s: fill_string(s, size))
    return [*rows, text]
