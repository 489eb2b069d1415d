"""Processes of their own that watch while something else is measured: a reader, a paced writer, a lag probe.

    bench_probe.py read PORT              a GET each millisecond; on a line on stdin prints the latencies (ms) since the last
    bench_probe.py pace PORT RATE         SETs at RATE a second until stdin closes; prints how many
    bench_probe.py lag SRC DST N GAP      N times: SET at SRC, then the milliseconds from its reply until DST tells of it
"""

import select
import socket
import sys
import time

from bench_node import Client, encode


def read(port):
    client = Client(port)
    seen = []
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    print("ready", flush=True)
    while True:
        began = time.perf_counter()
        client.call("GET", "key:00000000001")
        seen.append((time.perf_counter() - began) * 1000)
        if poll.poll(1):
            if not sys.stdin.readline():
                return
            print(" ".join(f"{ms:.4f}" for ms in seen), flush=True)
            seen = []


def pace(port, rate):
    sock = socket.create_connection(("127.0.0.1", port))
    each = max(1, rate // 1000)
    value = b"v" * 100
    pieces = [b"".join(encode("SET", b"key:%011d" % ((i * each + k) * 7919 % 100_000), value) for k in range(each))
              for i in range(512)]
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN | select.POLLHUP)
    sent, began = 0, time.perf_counter()
    print("ready", flush=True)
    sock.setblocking(False)
    while not poll.poll(0):
        due = int((time.perf_counter() - began) * rate) // each
        for _ in range(min(due - sent, 50)):
            sock.setblocking(True)
            sock.sendall(pieces[sent % 512])
            sock.setblocking(False)
            sent += 1
        try:
            while sock.recv(1 << 18):
                pass
        except BlockingIOError:
            pass
        time.sleep(0.0005)
    print(sent * each / (time.perf_counter() - began), flush=True)


def lag(source_port, target_port, n, gap):
    source, listener = Client(source_port), Client(target_port)
    listener.call("SUBSCRIBE", "__keyspace@0__:probe")
    seen = []
    for i in range(n):
        source.call("SET", "probe", f"value {i}")
        replied = time.perf_counter()
        listener.read()
        seen.append(max(0.0, time.perf_counter() - replied) * 1000)
        time.sleep(gap)
    print(" ".join(f"{ms:.4f}" for ms in seen), flush=True)


if __name__ == "__main__":
    what, numbers = sys.argv[1], sys.argv[2:]
    if what == "read":
        read(int(numbers[0]))
    elif what == "pace":
        pace(int(numbers[0]), int(numbers[1]))
    else:
        lag(int(numbers[0]), int(numbers[1]), int(numbers[2]), float(numbers[3]))
