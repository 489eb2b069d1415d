"""A server with the module, a client for it, and a line between two sites that can be cut. Used by run_demo.py."""

import json
import os
import signal
import socket
import subprocess
import threading
import time

DEADLINE = 120.0


class Failed(Exception):
    """Something is not as the demo has to show it."""


def eventually(what, check, seconds=DEADLINE):
    """Waits until check() is true; its value is returned."""
    end = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


def encode(command):
    parts = [p if isinstance(p, bytes) else str(p).encode() for p in command]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


class Client:
    """A RESP2 connection."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def close(self):
        self.file.close()
        self.socket.close()

    def read(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            return Failed(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.read() for _ in range(int(rest))]
        return rest

    def pipeline(self, commands):
        """Sends all, returns all replies; the first error is raised."""
        self.socket.sendall(b"".join(encode(c) for c in commands))
        replies = [self.read() for _ in commands]
        for command, reply in zip(commands, replies):
            if isinstance(reply, Failed):
                raise Failed(f"{' '.join(str(p) for p in command[:2])}: {reply}")
        return replies

    def call(self, *command):
        return self.pipeline([command])[0]


def free_port(taken=set()):
    """A port that nothing listens on, never the same twice."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port not in taken:
            taken.add(port)
            return port


class Node:
    """One server process with the module, in its own directory."""

    def __init__(self, name, service_id, binary, module, folder, settings):
        self.name, self.service_id, self.binary = name, service_id, binary
        self.port, self.endpoint_port = free_port(), free_port()
        self.folder = os.path.join(folder, name.replace(" ", "-"))
        os.makedirs(self.folder)
        settings = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "logfile": "server.log", **settings}
        self.args = [part for key, value in settings.items() for part in ("--" + key, str(value))]
        self.args += ["--loadmodule", module, "service-id", str(service_id), "endpoint", self.endpoint,
                      "segment-size", "32mb"]
        self.process = None

    @property
    def endpoint(self):
        return f"127.0.0.1:{self.endpoint_port}"

    def start(self):
        """Starts the process and waits until it serves writes or is a target; returns the seconds that took."""
        began = time.monotonic()
        out = open(os.path.join(self.folder, "stdout.log"), "ab")
        # A session of its own: Ctrl-C is for the demo, which then ends its servers in order.
        self.process = subprocess.Popen([self.binary] + self.args, stdout=out, stderr=out, start_new_session=True)
        out.close()
        eventually(f"{self.name} serves", self.ready)
        return time.monotonic() - began

    def ready(self):
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with {self.process.returncode}, see {self.folder}/server.log")
        try:
            client = Client(self.port)
        except OSError:
            return False
        try:
            client.call("PING")
            return json.loads(client.call("DR.STATUS", "JSON"))["state"] not in ("starting", "recovering")
        except (Failed, OSError):
            return False
        finally:
            client.close()

    def client(self):
        return Client(self.port)

    def call(self, *command):
        client = self.client()
        try:
            return client.call(*command)
        finally:
            client.close()

    def status(self):
        return json.loads(self.call("DR.STATUS", "JSON"))

    def digest(self):
        return self.call("DEBUG", "DIGEST").decode()

    def kill(self):
        """kill -9."""
        if self.process and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Line:
    """The line between two sites: forwards TCP connections to an endpoint until it is cut."""

    def __init__(self, to_port):
        self.to_port = to_port
        self.up = True
        self.lock = threading.Lock()
        self.sockets = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            near, _ = self.listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.to_port), timeout=2)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            with self.lock:
                if not self.up:
                    near.close()
                    far.close()
                    continue
                self.sockets |= {near, far}
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self.forward, args=(a, b), daemon=True).start()

    def forward(self, a, b):
        try:
            while data := a.recv(1 << 18):
                b.sendall(data)
        except OSError:
            pass
        for s in (a, b):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            with self.lock:
                self.sockets.discard(s)

    def cut(self):
        with self.lock:
            self.up = False
            sockets = list(self.sockets)
        for s in sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def mend(self):
        with self.lock:
            self.up = True
