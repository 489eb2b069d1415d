"""A source and two targets of one server version, through an outage, a failover and a failback.

SERVER is a name of `scripts/servers --names`, redis-7.0 by default.

Builds the module, starts three servers on free ports in a directory of their own, and ends with the digests of the
three datasets. Exit code 0: all is as it has to be. After a failure the directory stays and its place is printed.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from demo_data import Traffic, load_dpkg, write_bulk
from demo_node import Failed, Line, Node, eventually

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BEGAN = time.monotonic()
INDENT = " " * 10


def say(text=""):
    print(INDENT + text if text else "", flush=True)


def step(text):
    print(f"\n{time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def check(fact, text):
    """A fact that the demo is about: shown when it holds, the end when it does not."""
    if not fact:
        raise Failed(text + ": NO")
    say("ok  " + text)


def size(number):
    for unit in ("B", "KB", "MB"):
        if number < 1000:
            break
        number /= 1000
    else:
        unit = "GB"
    return f"{number:.0f} {unit}" if unit in ("B", "KB") else f"{number:.1f} {unit}"


def table(nodes, head=True):
    if head:
        say(f"{'node':10}{'role':8}{'state':11}{'op id':>11}{'applied':>11}{'lag':>9}{'log':>10}"
            f"{'full syncs':>12}{'rebuilds':>10}")
    for node in nodes:
        s = node.status()
        lag = size(s["link"]["lag_bytes"]) if s["link"] else "-"
        say(f"{node.name:10}{s['role']:8}{s['state']:11}{s['op_id']:11}{s['applied_op_id']:11}{lag:>9}"
            f"{size(s['oplog_bytes']):>10}{s['full_syncs']:12}{s['rebuilds']:10}")


def in_step(source, target):
    """Waits until the target has applied all that the source has executed by now; returns the seconds it took."""
    began, op = time.monotonic(), source.status()["op_id"]

    def reached():
        s = target.status()
        if s["state"] in ("held", "failed"):
            raise Failed(f"{target.name} is {s['state']}: {s['state_reason']}")
        return s["link"] and s["state"] == "streaming" and s["applied_op_id"] >= op

    eventually(f"{target.name} is in step with {source.name}", reached)
    return time.monotonic() - began


def link(target, address, source):
    target.call("DR.LINK", address)
    return in_step(source, target)


class Demo:
    def __init__(self, binary, module, folder):
        settings = {"save": "", "repl-backlog-size": "1mb"}
        if " v=6" not in subprocess.run([binary, "--version"], capture_output=True, text=True).stdout:
            settings["enable-debug-command"] = "yes"
        make = lambda name, n: Node(name, n, binary, module, folder, settings)
        self.source, self.one, self.two = make("source", 0), make("target 1", 1), make("target 2", 2)
        self.nodes = [self.source, self.one, self.two]
        self.line = None

    def run(self):
        self.begin()
        self.follow()
        self.outage()
        self.failover()
        self.failback()
        return self.compare()

    def begin(self):
        step("Start a source and two targets")
        for node in self.nodes:
            took = node.start()
            say(f"{node.name:10}port {node.port:<7}DR endpoint {node.endpoint:<18}up in {took:.1f} s")
        step("Load this machine's dpkg database into the source, six types in five databases")
        began = time.monotonic()
        count = load_dpkg(self.source)
        say(", ".join(f"{n} {what}" for what, n in count.items()) + f": {time.monotonic() - began:.1f} s")

    def follow(self):
        step("DR.LINK on both targets: each takes a snapshot once")
        self.line = Line(self.source.endpoint_port)
        for target in (self.one, self.two):
            say(f"{target.name} holds the dataset after {link(target, self.line.address, self.source):.1f} s")
        step("They follow while a client writes")
        traffic = Traffic(self.source)
        for n in range(3):
            time.sleep(0.5)
            table(self.nodes, head=n == 0)
        rounds = traffic.stop()
        lag = max(in_step(self.source, self.one), in_step(self.source, self.two))
        say(f"{rounds * 14} commands written; both in step {lag * 1000:.0f} ms after the last")

    def outage(self):
        step("kill -9 target 2, then write 300 MB over a backlog of 1 MB")
        self.two.kill()
        full_syncs = self.one.status()["full_syncs"]
        began = time.monotonic()
        write_bulk(self.source, 300)
        took = time.monotonic() - began
        s = self.source.status()
        away = next(t for t in s["targets"] if t["service_id"] == 2)
        say(f"300 MB in {took:.1f} s; the source keeps {size(away['pinned_bytes'])} of log for target 2 ({away['state']})")
        step("Start target 2 again")
        took = self.two.start()
        say(f"up in {took:.1f} s, in step {in_step(self.source, self.two):.1f} s later")
        in_step(self.source, self.one)
        table(self.nodes)
        check(self.two.status()["full_syncs"] == full_syncs, "target 2 resumed without a full sync")

    def failover(self):
        step("The site of the source is lost: its line goes first, a client writes on, then kill -9")
        traffic = Traffic(self.source)
        time.sleep(0.5)
        self.line.cut()
        time.sleep(0.3)
        last = self.source.status()["op_id"]
        self.source.kill()
        traffic.stop()
        say(f"the source's last op id was {last} or a little more")
        step("DR.CUTLINK on target 1: it becomes a source")
        began = time.monotonic()
        op = self.one.call("DR.CUTLINK")
        eventually("target 1 takes writes", lambda: self.one.status()["state"] == "capturing")
        self.one.call("SET", "written at", "target 1")
        say(f"it had applied op {op} and takes writes after {time.monotonic() - began:.1f} s; "
            f"about {size(last - op)} never left the lost site")
        took = link(self.two, self.one.endpoint, self.one)
        say(f"target 2 follows target 1 after {took:.1f} s")
        traffic = Traffic(self.one)
        time.sleep(1)
        traffic.stop()

    def failback(self):
        step("The old source comes back, and becomes a target by DR.LINK")
        took = self.source.start()
        say(f"up in {took:.1f} s, from its own snapshot and log")
        traffic = Traffic(self.one)
        took = link(self.source, self.one.endpoint, self.one)
        say(f"it follows target 1 after {took:.1f} s")
        s = self.source.status()
        for o in s["orphans"]:
            say(f"kept aside: {o['ops']} ops, {o['first_op_id']} to {o['last_op_id']} ({o['reason']})")
        check(s["full_syncs"] == 0, "it was rebuilt from its own disk, not copied over the line")
        check(len(s["orphans"]) == 1, "its ops that no target ever had are kept (oplogctl orphans)")
        step("Failback: let it come level, then turn the star round")
        rounds = traffic.stop()
        in_step(self.one, self.source)
        op = self.source.call("DR.CUTLINK")
        eventually("the old source takes writes", lambda: self.source.status()["state"] == "capturing")
        self.line.mend()
        say(f"{rounds * 14} commands written meanwhile; the old source is the source again from op {op}")
        for target in (self.one, self.two):
            say(f"{target.name} follows it after {link(target, self.line.address, self.source):.1f} s")
        traffic = Traffic(self.source)
        time.sleep(1)
        traffic.stop()
        for target in (self.one, self.two):
            in_step(self.source, target)
        table(self.nodes)
        check([n.status()["full_syncs"] for n in self.nodes] == [0, 1, 1],
              "one full sync for each target in all: the first")

    def compare(self):
        step("Digests (DEBUG DIGEST) of the three datasets")
        same = lambda: len({n.digest() for n in self.nodes}) == 1
        try:
            # The brief keys of the traffic expire at the source and are then deleted at the targets.
            eventually("the digests are equal", same, 20)
        except Failed:
            pass
        digests = [(n, n.digest(), sum(self.keys(n))) for n in self.nodes]
        for node, digest, keys in digests:
            say(f"{node.name:10}{digest}  {keys} keys")
        equal = len({d for _, d, _ in digests}) == 1
        say("equal" if equal else "NOT EQUAL")
        return equal

    @staticmethod
    def keys(node):
        client = node.client()
        counts = []
        for db in range(7):
            client.call("SELECT", db)
            counts.append(client.call("DBSIZE"))
        client.close()
        return counts


def build():
    print("building (cargo build --release)", flush=True)
    began = time.monotonic()
    # A build from nothing takes minutes: whoever watches sees cargo's own progress.
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    subprocess.run(["cargo", "build", "--release", "--locked", *quiet], cwd=ROOT, check=True)
    print(f"built in {time.monotonic() - began:.1f} s", flush=True)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    return os.path.abspath(os.path.join(target, "release", "libredisdr.so"))


def main():
    global BEGAN
    sys.dont_write_bytecode = True
    servers = os.path.join(ROOT, "scripts", "servers")
    names = subprocess.run([servers, "--names"], capture_output=True, text=True, check=True).stdout.split()
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", nargs="?", default="redis-7.0", choices=names, metavar="SERVER")
    parser.add_argument("--module", metavar="FILE", help="take this libredisdr.so and build nothing")
    args = parser.parse_args()
    name = args.server
    # A kill by TERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    module = os.path.abspath(args.module) if args.module else build()
    binary = subprocess.run([servers, "--path", name], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    folder = tempfile.mkdtemp(prefix="redisdr-demo-")
    demo, good = None, False
    print(f"\nredisdr on {name}, data and logs in {folder}")
    BEGAN = time.monotonic()
    try:
        demo = Demo(binary, module, folder)
        good = demo.run()
    except (Failed, OSError, subprocess.SubprocessError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        good = None
    finally:
        for node in demo.nodes if demo else ():
            node.kill()
        if good is False:
            print(f"the servers' directories and logs are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{time.monotonic() - BEGAN:6.1f} s  {'done' if good else 'not done'}")
    return 0 if good else 130 if good is None else 1


if __name__ == "__main__":
    sys.exit(main())
