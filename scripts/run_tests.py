"""The stages behind scripts/test: format, lints, builds, then every test program of the workspace.

Test programs are run one after another, by name, so that a test that hangs or takes its whole program down is known and
is tried again alone. A test that fails and then passes alone is reported as flaky; it does not fail the run.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TAIL = 60           # lines of a failed test's output that are shown
RETRY_AT_MOST = 15  # more failures than this are no flakiness


class Results:
    """What came out, over all stages."""

    def __init__(self):
        self.passed = 0
        self.failed = []     # (name, output)
        self.flaky = []
        self.left_out = {}   # reason -> count

    def leave_out(self, reason, count=1):
        if count:
            self.left_out[reason] = self.left_out.get(reason, 0) + count


def say(text):
    print(text, flush=True)


def stage(name, began, note=""):
    say(f"== {name:<34} {time.time() - began:7.1f} s  {note}".rstrip())


def tail(text, lines=TAIL):
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])


def command_stage(results, name, argv):
    """A stage that is one command; shows its output only when it fails."""
    began = time.time()
    done = subprocess.run(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    good = done.returncode == 0
    stage(name, began, "" if good else "FAILED")
    if not good:
        results.failed.append((name, done.stdout))
        say(tail(done.stdout))
    return good


def server_names(args):
    known = subprocess.check_output([os.path.join(TOP, "scripts/servers"), "--names"], text=True).split()
    if args.servers:
        wanted = [name.strip() for name in args.servers.split(",") if name.strip()]
        for name in wanted:
            if name not in known:
                sys.exit(f"error: no server is called {name}; there are {' '.join(known)}")
        return wanted, known
    return (["redis-7.0"] if args.quick else known), known


def servers_stage(results, wanted):
    """Fetches the servers that are not there yet."""
    began = time.time()
    paths, failed = [], []
    for name in wanted:
        done = subprocess.run([os.path.join(TOP, "scripts/servers"), "--path", name], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            paths.append(done.stdout.strip())
        else:
            failed.append(name)
            say(tail(done.stderr))
    stage("servers", began, f"{len(paths)} of {len(wanted)}" + (", FAILED: " + " ".join(failed) if failed else ""))
    if failed:
        results.failed.append(("servers " + " ".join(failed), "could not be fetched"))
    return paths


def servers_in(test, known):
    """The servers that a test's name speaks of: redis_7_0, valkey_9_1; a bare 7_0 is Redis."""
    found = set()
    for product, major, minor in re.findall(r"(?:(redis|valkey)_)?(?<!\d)(\d+)_(\d+)(?!\d)", test):
        name = f"{product or 'redis'}-{major}.{minor}"
        if name in known:
            found.add(name)
    return found


def test_programs(results):
    """Builds all tests; gives (label, executable, package folder, whether it drives servers)."""
    began = time.time()
    argv = ["cargo", "test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]
    done = subprocess.run(argv, cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    good = done.returncode == 0
    stage("build of the tests", began, "" if good else "FAILED")
    if not good:
        say(tail(done.stderr))
        results.failed.append(("build of the tests", done.stderr))
        return []
    programs = []
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") != "compiler-artifact" or not message.get("executable"):
            continue
        if not message["profile"]["test"]:
            continue
        target = message["target"]
        folder = os.path.dirname(message["manifest_path"])
        kind = target["kind"][0]
        label = target["name"] if kind == "test" else f"{target['name']} ({kind})"
        if folder != TOP:
            label = f"{os.path.basename(folder)}: {label}"
        programs.append((label, message["executable"], folder, kind == "test" and folder == TOP))
    programs.sort(key=lambda program: (program[3], program[0] == "server", program[0]))
    return programs


class Program:
    """One test program and how to run tests of it."""

    def __init__(self, label, path, folder, env, threads, timeout):
        self.label, self.path, self.folder = label, path, folder
        self.env, self.threads, self.timeout = env, threads, timeout

    def tests(self):
        text = subprocess.check_output([self.path, "--list"], cwd=self.folder, env=self.env, text=True)
        return [line[: -len(": test")] for line in text.splitlines() if line.endswith(": test")]

    def run(self, tests, ignored, threads=None, timeout=None):
        """Runs tests by name. Gives name -> (ok, FAILED, ignored or lost; a reason), and all output.

        A program that shows no result for `timeout` seconds is killed; tests without a result are lost.
        """
        argv = [self.path, "--exact", "--color=never", f"--test-threads={threads or self.threads}"]
        argv += ["--include-ignored"] if ignored else []
        process = subprocess.Popen(argv + tests, cwd=self.folder, env=self.env, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True)
        limit = timeout or self.timeout
        watch = Watchdog(process, limit)
        states, lines = {}, []
        for line in process.stdout:
            lines.append(line)
            found = re.match(r"test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)(?:, (.*))?$", line.rstrip())
            if found:
                watch.alive()
                states[found.group(1)] = (found.group(2), found.group(3) or "")
        process.wait()
        why = f"no result for {limit} s" if watch.bit else f"its program ended with {process.returncode}"
        for test in tests:
            states.setdefault(test, ("lost", why))
        return states, "".join(lines)

    def run_all(self, tests, ignored, timeout=None):
        """As `run`, and goes on behind a test that hangs or takes the program down.

        Tests start in the order of their names, so those that ran at that moment are the first ones without a result;
        they stay lost, and the ones behind them get their turn.
        """
        states, text = self.run(tests, ignored, timeout=timeout)
        for _ in range(5):
            behind = [test for test in sorted(tests) if states[test][0] == "lost"][self.threads:]
            if not behind:
                break
            more, more_text = self.run(behind, ignored, timeout=timeout)
            states.update(more)
            text += more_text
            if all(state[0] == "lost" for state in more.values()):
                break
        return states, text


class Watchdog:
    """Kills a process group that was quiet for too long."""

    def __init__(self, process, limit):
        self.process, self.limit, self.bit = process, limit, False
        self.last = time.time()
        threading.Thread(target=self.watch, daemon=True).start()

    def alive(self):
        self.last = time.time()

    def watch(self):
        while self.process.poll() is None:
            if time.time() - self.last > self.limit:
                self.bit = True
                os.killpg(self.process.pid, signal.SIGKILL)
                return
            time.sleep(0.2)


def output_of(test, text):
    """The part of a program's output that belongs to one test."""
    found = re.search(rf"(?ms)^---- {re.escape(test)} stdout ----\n(.*?)(?=^---- \S+ stdout ----$|^failures:$|\Z)", text)
    return found.group(1) if found else text


def run_program(results, program, args, wanted, known):
    """All chosen tests of one program, with a second try for those that fail."""
    everything = program.tests()
    if args.filters:
        everything = [t for t in everything if any(f in f"{program.label}::{t}" for f in args.filters)]
    tests = [t for t in everything if servers_in(t, known) <= set(wanted)]
    results.leave_out("on servers that were not asked for", len(everything) - len(tests))
    if not tests:
        return 0
    began = time.time()
    states, text = program.run_all(tests, ignored=False)
    more = []
    for test, (state, reason) in states.items():
        if state == "ignored":
            matrix = reason.startswith("matrix")
            if args.soak or (matrix and args.matrix):
                more.append(test)
            else:
                results.leave_out("with --matrix" if matrix else "with --soak")
    states = {test: state for test, state in states.items() if state[0] != "ignored"}
    if more:
        later, more_text = program.run_all(more, ignored=True, timeout=program.timeout * 6)
        states.update(later)
        text += more_text
    with open(os.path.join(log_folder(), re.sub(r"\W+", "-", program.label) + ".log"), "w", encoding="utf-8") as out:
        out.write(text)
    bad = sorted(test for test, (state, _) in states.items() if state != "ok")
    results.passed += len(states) - len(bad)
    note = f"{len(states) - len(bad)} of {len(states)}"
    stage(program.label, began, note + (f", failed: {len(bad)}" if bad else ""))
    retry = len(bad) <= RETRY_AT_MOST
    tries = [(test, states[test], judge(program, test, text, retry, args)) for test in bad]
    # Some of the lost tests only ran beside the one that took the program down: they are not flaky.
    culprit = any(state[0] == "lost" and again is not None for _, state, again in tries)
    for test, state, again in tries:
        name = f"{program.label}::{test}"
        first = output_of(test, text) if state[0] == "FAILED" else state[1]
        if again is not None:
            results.failed.append((name, f"{state[1]}\n{again}" if state[0] == "lost" else again or first))
            continue
        results.passed += 1
        if state[0] == "FAILED" or not culprit:
            results.flaky.append((name, first))
    return len(states)


def judge(program, test, text, retry, args):
    """Runs a failed test once more, alone. None: it passed; else its output."""
    if not retry:
        return output_of(test, text) if f"---- {test} stdout" in text else ""
    began = time.time()
    again, second = program.run([test], ignored=True, threads=1, timeout=program.timeout * (6 if args.soak else 1))
    good = again[test][0] == "ok"
    stage("  again alone", began, f"{test}: {'passed' if good else 'FAILED again'}")
    return None if good else output_of(test, second)


def log_folder():
    path = os.path.join(TOP, "target", "test-logs")
    os.makedirs(path, exist_ok=True)
    return path


def doc_tests(results):
    began = time.time()
    done = subprocess.run(["cargo", "test", "--workspace", "--doc", "-q"], cwd=TOP, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    count = sum(int(n) for n in re.findall(r"^test result: \S+ (\d+) passed", done.stdout, re.M))
    results.passed += count
    stage("documentation examples", began, str(count) if done.returncode == 0 else "FAILED")
    if done.returncode != 0:
        results.failed.append(("documentation examples", done.stdout))


def summary(results, began):
    say("")
    for name, output in results.flaky:
        say(f"FLAKY {name}: failed, then passed alone. Its first output ended:")
        say(tail(output, 15))
    for at, (name, output) in enumerate(results.failed):
        say(f"FAILED {name}")
        if at < 20:
            say(tail(output))
    for reason, count in sorted(results.left_out.items()):
        say(f"left out: {count} {reason}")
    say(f"== all {time.time() - began:.0f} s, flaky: {len(results.flaky)}, logs: target/test-logs")
    say(f"{results.passed} passed, {len(results.failed)} failed")


def arguments():
    parser = argparse.ArgumentParser(
        prog="scripts/test", description="Checks format and lints, builds, and runs every test of the workspace.")
    parser.add_argument("--quick", action="store_true", help="server tests on redis-7.0 only")
    parser.add_argument("--matrix", action="store_true", help="with the tests that are ignored as `matrix`: the servers "
                        "of a kind already tested on another one")
    parser.add_argument("--soak", action="store_true", help="with all ignored tests; takes hours")
    parser.add_argument("--servers", metavar="A,B", help="server tests on these only")
    parser.add_argument("--no-checks", action="store_true", help="no format, lints and documentation examples")
    parser.add_argument("filters", nargs="*", help="only tests whose program::name holds one of these")
    return parser.parse_args()


def main():
    args = arguments()
    began, results = time.time(), Results()
    os.chdir(TOP)
    wanted, known = server_names(args)
    if not args.filters and not args.no_checks:
        command_stage(results, "format", ["cargo", "fmt", "--all", "--check"])
        command_stage(results, "lints", ["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
    built = command_stage(results, "build of the module", ["cargo", "build", "--release", "--workspace"])
    programs = test_programs(results) if built else []
    env = dict(os.environ, REDISDR_SERVERS_LIST=",".join(wanted), CARGO_TERM_COLOR="never")
    if any(program[3] for program in programs):
        # REDISDR_TEST_SERVERS: the same for tests that take paths.
        env["REDISDR_TEST_SERVERS"] = ":".join(servers_stage(results, wanted))
    # Most of a server test is waiting.
    threads = int(os.environ.get("REDISDR_TEST_THREADS") or (os.cpu_count() or 2) + 1)
    timeout = int(os.environ.get("REDISDR_TEST_TIMEOUT") or 600)
    ran = 0
    for label, path, folder, _ in programs:
        own = dict(env, CARGO_MANIFEST_DIR=folder)
        ran += run_program(results, Program(label, path, folder, own, threads, timeout), args, wanted, known)
    if built and not args.filters and not args.no_checks:
        doc_tests(results)
    if ran == 0 and not results.failed:
        results.failed.append(("no test", "no test matches " + " ".join(args.filters)))
    summary(results, began)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
