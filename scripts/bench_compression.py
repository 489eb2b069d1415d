"""What `compression zstd` costs and gains, on values as an application has them: what dpkg says of each package here."""

import os

from bench_load import benchmark
from bench_node import TOP, Failed, followed, streaming
from bench_rows import Row, interleave, ratio, row

STATUS = "/var/lib/dpkg/status"


def values(bench):
    """A file of some hundred texts of 0.3 to 4 KB (on other systems than Debian: paragraphs of the documents), no two of
    them the same, in an order in which neighbours have nothing to do with one another; and their mean length."""
    if os.path.exists(STATUS):
        with open(STATUS, encoding="utf-8", errors="replace") as f:
            texts = f.read().split("\n\n")
    else:
        folder = os.path.join(TOP, "docs")
        texts = []
        for name in sorted(os.listdir(folder)):
            if name.endswith(".md"):
                with open(os.path.join(folder, name), encoding="utf-8") as f:
                    texts += f.read().split("\n\n")
    texts = sorted({text.strip() for text in texts if len(text) >= 100}, key=lambda text: hash_of(text))
    if not texts:
        raise Failed("no texts to take values from")
    path = os.path.join(bench.folder, "values")
    with open(path, "w", encoding="utf-8") as out:
        out.write("\n\n".join(texts))
    return path, sum(len(text.encode()) for text in texts) / len(texts)


def hash_of(text):
    """The same order in each run."""
    seed = 2166136261
    for byte in text[:200].encode():
        seed = (seed ^ byte) * 16777619 % 2**32
    return seed


def thread_ns(node, name):
    """CPU time of the module's threads of this name."""
    total = 0
    folder = f"/proc/{node.pid}/task"
    for task in os.listdir(folder):
        try:
            with open(f"{folder}/{task}/comm", encoding="ascii") as f:
                if f.read().strip() != name:
                    continue
            with open(f"{folder}/{task}/schedstat", encoding="ascii") as f:
                total += int(f.read().split()[0])
        except OSError:
            pass
    return total


def one(node, n, path, threads=("dr-writer",), settle=None, **load):
    """A load; CPU of the main thread for each op, of other threads for each MB of the stream."""
    main, op = node.main_ns(), node.status()["op_id"]
    before = [thread_ns(node, name) for name in threads]
    benchmark(node, n, values=path, **load)
    node.caught_up()
    if settle:
        settle()
    mb = (node.status()["op_id"] - op) / 1e6
    figures = {"main": (node.main_ns() - main) / n}
    for name, was in zip(threads, before):
        figures[name] = (thread_ns(node, name) - was) / 1e6 / mb
    return figures


def at_target(bench, source, n, path):
    """CPU for each MB of the stream of the thread that sends to a target, and of those that take it there."""
    target = bench.target(source)
    streaming(target)
    threads = ("dr-link", "dr-feed")
    before, op = [thread_ns(target, name) for name in threads], source.status()["op_id"]
    sent = one(source, n, path, threads=("dr-target-1",), settle=lambda: followed(target, source.status()["op_id"]))
    mb = (source.status()["op_id"] - op) / 1e6
    took = sum(thread_ns(target, name) - was for name, was in zip(threads, before)) / 1e6 / mb
    target.kill()
    return {"send": sent["dr-target-1"], "take": took}


def disk(node):
    status = node.status()
    return status["oplog_bytes"] / (status["op_id"] - status["oldest_op_id"] + 1)


@row("compression")
def compression(bench):
    """Log bytes on disk per stream byte with zstd, on realistic values, and the CPU for it."""
    n, rounds = bench.pick(50_000, 300_000), bench.pick(5, 9)
    path, mean = values(bench)
    plain, packed = bench.source(), bench.source(args=["compression", "zstd"])
    single = bench.source(args=["compression", "zstd"])
    seen = interleave({"plain": lambda: one(plain, n, path), "zstd": lambda: one(packed, n, path)}, rounds)
    one(single, n // 2, path, clients=8, pipeline=1)
    alone = bench.source(args=["compression", "zstd"])
    one(alone, n // 8, path, clients=1, pipeline=1)
    costs = {name: at_target(bench, source, n, path) for name, source in (("zstd", packed), ("plain", plain))}
    context = {
        "writer thread, ms of CPU per MB": seen["zstd"]["dr-writer"],
        "the same, without compression": seen["plain"]["dr-writer"],
        "the source's thread for a target, ms per MB": costs["zstd"]["send"],
        "the same, without compression (plain)": costs["plain"]["send"],
        "threads dr-link and dr-feed at a target, ms per MB": costs["zstd"]["take"],
        "the same without (plain)": costs["plain"]["take"],
        "mean length of a value": mean,
        "log bytes without compression": disk(plain),
        "log bytes, pipeline 1, one client": disk(alone),
    }
    return [
        Row("compression", "log bytes per stream byte with zstd, pipeline 16, 50 clients", disk(packed), 0.5, 0.5, context),
        Row("compression-p1", "the same, pipeline 1, 8 clients", disk(single), 0.5, 0.5),
        Row("compression-cpu", "main-thread CPU per SET, pipeline 16: zstd / plain",
            ratio(seen, "zstd", "plain", "main"), 1.05, 1.02),
    ]
