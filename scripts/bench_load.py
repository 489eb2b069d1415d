"""Load of scripts/bench: examples/bench_load.rs where clients are measured, prepared streams where a target is."""

import json
import os
import random
import socket
import subprocess
import threading

from bench_node import Failed, encode


def benchmark(node, n, clients=50, pipeline=16, size=100, keys=100_000, rate=0, values=None):
    """Clients that SET over random keys, as fast as the server answers or at a rate; returns rps, p50 and p99 (ms from when
    a pipeline was due to its last reply)."""
    argv = [node.bench.load, node.port, n, clients, pipeline, size, keys, rate] + ([values] if values else [])
    done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Failed(f"bench_load: exit {done.returncode}: {done.stderr[-300:]}")
    return json.loads(done.stdout)


def blast(node, chunks):
    """Sends prepared commands as fast as the server takes them. `chunks` yields (bytes, number of commands); returns
    how many commands were answered. An error reply fails the measurement."""
    sock = socket.create_connection(("127.0.0.1", node.port), timeout=300)
    sent = {"commands": 0, "done": False, "error": None}
    got = [0]

    def hear():
        try:
            while not (sent["done"] and got[0] >= sent["commands"]):
                data = sock.recv(1 << 20)
                if not data:
                    raise Failed("the server has closed the connection")
                if data[:1] == b"-" or b"\n-" in data:
                    raise Failed("a command of the load failed: " + repr(data[:200]))
                got[0] += data.count(b"\n")
        except (OSError, Failed) as error:
            sent["error"] = error

    ear = threading.Thread(target=hear)
    ear.start()
    try:
        for data, commands in chunks:
            sent["commands"] += commands
            sock.sendall(data)
            if sent["error"]:
                raise Failed(str(sent["error"]))
        # The last reply may have been read before `done` was set: one more makes the ear look again.
        sent["commands"] += 1
        sent["done"] = True
        sock.sendall(encode("PING"))
        ear.join(300)
    finally:
        sock.close()
    if sent["error"] or ear.is_alive():
        raise Failed(f"load: {sent['error'] or 'no answer for 300 s'}")
    return sent["commands"] - 1


STEP = 2000  # commands in a prepared piece


def cached(path, make):
    """A prepared stream in a file: making it costs more than sending it."""
    if not os.path.exists(path):
        with open(path + ".new", "wb") as out:
            for piece in make():
                out.write(len(piece).to_bytes(4, "little") + piece)
        os.rename(path + ".new", path)
    with open(path, "rb") as stream:
        while head := stream.read(4):
            yield stream.read(int.from_bytes(head, "little")), STEP


def sets(bench, n, keys=100_000, size=100, name=None):
    """`n` plain SETs over random keys with values that are no numbers."""
    def make():
        rng = random.Random(1)
        value = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(size * 3 + 1000)).encode()
        for _ in range(n // STEP):
            out = []
            for _ in range(STEP):
                at = rng.randrange(len(value) - size)
                out.append(b"*3\r\n$3\r\nSET\r\n$15\r\nkey:%011d\r\n$%d\r\n%s\r\n"
                           % (rng.randrange(keys), size, value[at:at + size]))
            yield b"".join(out)
    return cached(os.path.join(bench.folder, name or f"sets-{n}-{keys}-{size}"), make)


def mixed(bench, n, keys=50_000):
    """`n` commands as an application mixes them: strings, counters, hashes, lists, sets, sorted sets, expiries, DEL."""
    def make():
        rng = random.Random(2)
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(5000))
        kinds = [
            (25, lambda k, v: ("SET", f"s:{k}", v)),
            (10, lambda k, v: ("SET", f"e:{k}", v, "EX", "3600")),
            (15, lambda k, v: ("INCR", f"n:{k % 1000}")),
            (15, lambda k, v: ("HSET", f"h:{k % 5000}", f"f{k % 50}", v)),
            (10, lambda k, v: ("ZADD", f"z:{k % 2000}", str(k % 977), f"m{k % 100}")),
            (10, lambda k, v: ("SADD", f"t:{k % 2000}", f"m{k % 100}")),
            (7, lambda k, v: ("LPUSH", f"l:{k % 2000}", v)),
            (3, lambda k, v: ("LTRIM", f"l:{k % 2000}", "0", "50")),
            (3, lambda k, v: ("DEL", f"s:{k}")),
            (2, lambda k, v: ("EXPIRE", f"h:{k % 5000}", "7200")),
        ]
        makers = [make_one for weight, make_one in kinds for _ in range(weight)]
        for _ in range(n // STEP):
            out = []
            for _ in range(STEP):
                at = rng.randrange(4000)
                out.append(encode(*rng.choice(makers)(rng.randrange(keys), word[at:at + rng.randrange(10, 200)])))
            yield b"".join(out)
    return cached(os.path.join(bench.folder, f"mixed-{n}-{keys}"), make)


def hashes(bench, n, fields=100):
    """`n` hashes of `fields` fields each. One HSET is a command, so a piece of STEP commands is large."""
    def make():
        rng = random.Random(3)
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(5000))
        for at in range(0, n, STEP):
            out = []
            for i in range(at, at + STEP):
                args = ["HSET", f"hash:{i:08d}"]
                for f in range(fields):
                    start = rng.randrange(4900)
                    args += [f"field:{f:04d}", word[start:start + 20]]
                out.append(encode(*args))
            yield b"".join(out)
    return cached(os.path.join(bench.folder, f"hashes-{n}-{fields}"), make)
