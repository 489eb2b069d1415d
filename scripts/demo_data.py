"""What the demo writes: this machine's own dpkg database, live traffic, and bulk. Used by run_demo.py."""

import os
import threading
import time

from demo_node import Failed

DPKG = "/var/lib/dpkg/status"
HASHES, LISTS, SETS, SORTED, STREAMS = range(5)  # databases


def packages():
    """Yields a dict of fields for each package that dpkg knows."""
    with open(DPKG, encoding="utf-8", errors="replace") as file:
        for stanza in file.read().split("\n\n"):
            fields, name = {}, None
            for line in stanza.splitlines():
                if line[:1] in (" ", "\t"):
                    fields[name] += "\n" + line.strip()
                else:
                    name, _, value = line.partition(":")
                    fields[name] = value.strip()
            if "Package" in fields:
                yield fields


def load_dpkg(node):
    """Loads it as strings, hashes, lists, sets, sorted sets and streams; returns how many of each in words."""
    by_db = {db: [] for db in range(5)}
    count = dict.fromkeys(("packages", "with a TTL", "list elements", "set members", "sorted set members"), 0)
    for n, p in enumerate(packages()):
        name = p["Package"]
        count["packages"] += 1
        hashed = [part for key, value in p.items() if key != "Description" for part in (key, value)]
        by_db[HASHES].append(["HSET", "package:" + name] + hashed)
        text = ["SET", "description:" + name, p.get("Description", "")]
        if n % 5 == 0:
            text += ["EX", 3600 + n]
            count["with a TTL"] += 1
        by_db[HASHES].append(text)
        wants = [w.strip() for w in p.get("Depends", "").split(",") if w.strip()]
        if wants:
            by_db[LISTS].append(["RPUSH", "depends:" + name] + wants)
            count["list elements"] += len(wants)
        for want in wants:
            by_db[SETS].append(["SADD", "needed by:" + want.split()[0], name])
        by_db[SETS].append(["SADD", "section:" + p.get("Section", "none"), name])
        count["set members"] += len(wants) + 1
        size = p.get("Installed-Size", "0")
        by_db[SORTED] += [["ZADD", "size", size, name], ["ZADD", "size of " + p.get("Section", "none"), size, name]]
        count["sorted set members"] += 2
        by_db[STREAMS].append(["XADD", "installed", "*", "name", name, "version", p.get("Version", "")])
    by_db[SETS].append(["EXPIRE", "section:none", 7200])
    by_db[STREAMS] += [["XGROUP", "CREATE", "installed", "readers", "0"],
                       ["XREADGROUP", "GROUP", "readers", "one", "COUNT", "50", "STREAMS", "installed", ">"]]
    client = node.client()
    for db, commands in by_db.items():
        client.call("SELECT", db)
        for at in range(0, len(commands), 500):
            client.pipeline(commands[at:at + 500])
    client.close()
    return count


def write_bulk(node, megabytes):
    """Writes that many MB of SETs over a few hundred keys, so that the dataset stays small and the log does not."""
    client = node.client()
    client.call("SELECT", 5)
    value = os.urandom(64 * 1024)
    for n in range(megabytes):
        client.pipeline([["SET", f"bulk:{(n * 16 + i) % 320}", value + b"%d %d" % (n, i)] for i in range(16)])
    client.close()


class Traffic:
    """Mixed writes by one client, on a thread, until stopped or until the server is gone."""

    def __init__(self, node):
        self.node, self.rounds, self.error = node, 0, None
        self.running = True
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        try:
            client = self.node.client()
            client.call("SELECT", 6)
            while self.running:
                client.pipeline(self.commands(self.rounds))
                self.rounds += 1
                time.sleep(0.005)
            client.close()
        except OSError:
            pass  # the server was killed, as the story has it
        except Failed as error:
            self.error = error

    def commands(self, n):
        return [
            ["INCR", "counter"], ["RPUSH", "list", n], ["LTRIM", "list", -500, -1], ["HINCRBY", "hash", n % 97, 1],
            ["SADD", "set", n % 4999], ["SPOP", "set", n % 2], ["ZINCRBY", "sorted", "1.5", n % 499],
            ["XADD", "stream", "MAXLEN", "~", 1000, "*", "n", n], ["SET", f"brief:{n % 50}", n, "PX", 300],
            ["MULTI"], ["INCR", "both"], ["RPUSH", "both too", n], ["EXEC"],
            ["EVAL", "return redis.call('INCRBY', KEYS[1], ARGV[1])", 1, "by script", n],
        ]

    def stop(self):
        self.running = False
        self.thread.join()
        if self.error:
            raise self.error
        return self.rounds
