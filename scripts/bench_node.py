"""Servers, connections and clocks of scripts/bench: each server in a folder of its own, on free ports, killed at the end."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Failed(Exception):
    """A measurement that could not be made; the text says why."""


class Client:
    """One connection that speaks RESP2, blocking, with a deadline for each reply."""

    def __init__(self, port, timeout=120):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.sock.makefile("rb")

    def close(self):
        self.file.close()
        self.sock.close()

    def send(self, *args):
        self.sock.sendall(encode(*args))

    def read(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError("the server has closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise Failed("server: " + rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        raise Failed(f"no reply: {line!r}")

    def call(self, *args):
        self.send(*args)
        return self.read()


def encode(*args):
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        raw = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(raw), raw))
    return b"".join(parts)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """A running server."""

    def __init__(self, bench, name, *conf, module=None, threads_first=False):
        self.bench, self.name = bench, name
        self.folder = os.path.join(bench.folder, name)
        os.makedirs(self.folder)
        self.port, self.endpoint = free_port(), free_port()
        self.log = os.path.join(self.folder, "server.log")
        self.conf = [
            "port", self.port, "bind", "127.0.0.1", "dir", self.folder, "logfile", self.log, "daemonize", "no",
            "unixsocket", os.path.join(self.folder, "s"), "save", "", "protected-mode", "no",
            "repl-backlog-size", "64mb", "client-output-buffer-limit", "replica 0 0 0", "repl-diskless-sync", "yes",
            "repl-diskless-sync-delay", "0", "repl-timeout", "600", "enable-debug-command", "yes",
            *conf,
        ]
        if bench.old:  # A setting that 6.x does not know.
            at = self.conf.index("enable-debug-command")
            del self.conf[at:at + 2]
        self.module = module
        self.process = None
        self.start()

    def start(self):
        path = os.path.join(self.folder, "redis.conf")
        with open(path, "w", encoding="utf-8") as out:
            for key, value in zip(self.conf[::2], self.conf[1::2]):
                # A value of several words is one line; an empty one has to be quoted.
                out.write(f"{key} {value if value != '' else chr(34) * 2}\n")
            if self.module is not None:
                extra = " ".join(self.module)
                out.write(f"loadmodule {self.bench.module} endpoint 127.0.0.1:{self.endpoint} {extra}\n")
        self.process = subprocess.Popen([self.bench.binary, path], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.bench.nodes.append(self)
        self.client = self.wait("to answer", self._connect)
        if self.module is not None:
            self.wait("to capture or stream", lambda: self.status()["state"] != "starting")

    def _connect(self):
        if self.process.poll() is not None:
            raise Failed(f"{self.name} has ended, see {self.log}:\n{tail(self.log)}")
        try:
            client = Client(self.port)
            client.call("PING")
            return client
        except (OSError, Failed):
            return None

    @property
    def pid(self):
        return self.process.pid

    def call(self, *args):
        return self.client.call(*args)

    def info(self, section):
        text = self.call("INFO", section).decode()
        return dict(re.findall(r"(?m)^([^#:\r\n]+):([^\r\n]*)", text))

    def status(self):
        return json.loads(self.call("DR.STATUS", "JSON"))

    def offset(self):
        return int(self.info("replication")["master_repl_offset"])

    def replica_offset(self):
        return int(self.info("replication").get("slave_repl_offset", -1))

    def wait(self, what, done, timeout=300, every=0.005):
        until = time.monotonic() + timeout
        while True:
            found = done()
            if found:
                return found
            if time.monotonic() > until:
                raise Failed(f"{self.name}: waited {timeout} s for it {what}; log:\n{tail(self.log)}")
            time.sleep(every)

    def main_ns(self):
        """CPU time of the main thread so far, in nanoseconds."""
        with open(f"/proc/{self.pid}/task/{self.pid}/schedstat", encoding="ascii") as f:
            return int(f.read().split()[0])

    def all_ns(self):
        """CPU time of all threads alive, in nanoseconds."""
        total = 0
        for task in os.listdir(f"/proc/{self.pid}/task"):
            try:
                with open(f"/proc/{self.pid}/task/{task}/schedstat", encoding="ascii") as f:
                    total += int(f.read().split()[0])
            except OSError:
                pass
        return total

    def anon_bytes(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as f:
            return int(re.search(r"RssAnon:\s+(\d+)", f.read()).group(1)) * 1024

    def pause(self):
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.pid, signal.SIGCONT)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self in self.bench.nodes:
            self.bench.nodes.remove(self)
        shutil.rmtree(self.folder, ignore_errors=True)

    def caught_up(self):
        """Waits until the log of a source holds all that the server has propagated."""
        def done():
            status, offset = self.status(), self.offset()
            return status["op_id"] >= offset
        self.wait("to log all it has", done, every=0.002)


def tail(path, lines=12):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return "\n".join("    " + line.rstrip() for line in f.readlines()[-lines:])
    except OSError as error:
        return f"    {error}"


class Bench:
    """What all measurements share: the binaries, the scale, a folder, and the servers that run."""

    def __init__(self, server, module, load, full):
        names = [os.path.join(TOP, "scripts", "servers"), "--path", server]
        self.server, self.full = server, full
        self.binary = subprocess.run(names, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        self.old = server.startswith("redis-6")
        self.module, self.load = module, load
        self.nodes = []
        self.folder = tempfile.mkdtemp(prefix="redisdr-bench-")
        self.counter = 0

    def node(self, kind, *conf, module=None):
        self.counter += 1
        return Node(self, f"{kind}-{self.counter}", *conf, module=module)

    def source(self, *conf, args=()):
        return self.node("source", *conf, module=["service-id", "0", *args])

    def target(self, source, service_id=1, *conf, args=()):
        node = self.node("target", *conf, module=["service-id", str(service_id), *args])
        node.call("DR.LINK", f"127.0.0.1:{source.endpoint}")
        return node

    def replica(self, master, *conf):
        return self.node("replica", "replicaof", f"127.0.0.1 {master.port}", *conf)

    def kill_all(self):
        for node in list(self.nodes):
            node.kill()

    def close(self):
        self.kill_all()
        shutil.rmtree(self.folder, ignore_errors=True)

    def pick(self, quick, full):
        """A size that depends on how much time there is."""
        return full if self.full else quick


def streaming(node, timeout=600):
    node.wait("to follow its source", lambda: node.status()["state"] == "streaming", timeout)


def online(replica, timeout=600):
    replica.wait("to follow its master", lambda: replica.info("replication").get("master_link_status") == "up", timeout)


def followed(node, op, timeout=900, every=0.002):
    node.wait(f"to apply op {op}", lambda: node.status()["applied_op_id"] >= op, timeout, every)


def replicated(replica, offset, timeout=900, every=0.002):
    replica.wait(f"to reach offset {offset}", lambda: replica.replica_offset() >= offset, timeout, every)
