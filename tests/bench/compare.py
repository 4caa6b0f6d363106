#!/usr/bin/env python3
"""Builds the benchmarks and compares bao with its yardsticks, topic by topic.

    tests/bench/compare.py switch       switching stacks
    tests/bench/compare.py generator    a value of a generator
    tests/bench/compare.py tasks        yield, spawn and timers against boost.fiber
                                        and Go
    tests/bench/compare.py cooperation  channels, a mutex, and many timers against
                                        the same
    tests/bench/compare.py echo         an echo server against a bare epoll loop
    tests/bench/compare.py http         a web server against nginx, by wrk
    tests/bench/compare.py parse        the single header against what it includes,
                                        by $CXX, or g++

The programs of a topic take turns, ROUNDS times over. A ratio is taken within
each round, where the machine was in one mood, and its median is what counts;
beside it stands the target, met or missed. Absolute figures of two machines, or
of two days, mean nothing. Any other load on the machine spoils the result.

Micro benchmarks run on one core. For the echo, the server has one core and the
load another; the figure is the CPU time that the server spends on a request,
and the system calls it makes, which are counted by perf's tracepoints in runs
of their own (that needs root, or kernel.perf_event_paranoid at -1; strace would
slow the server so much that it does something else).

The exit status is 1 when a target was missed or could not be measured.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

# What is run, each command once a round.
PROGRAMS = {
    "switch": [
        "switch_limit switch",
        "bao_bench fiber-switch",
        "bao_bench switch",
        "boost_bench switch",
    ],
    "generator": [
        "stackless_generator",
        "switch_limit gen",
        "bao_bench gen",
        "bao_bench gen-next",
        "bao_bench gen-from4",
        "boost_bench gen",
    ],
    "tasks": [
        "bao_bench yield",
        "boost_bench yield",
        "go_bench yield",
        "bao_bench rr",
        "boost_bench rr",
        "bao_bench spawn",
        "boost_bench spawn",
        "go_bench spawn",
        "bao_bench timer 10000",
        "boost_bench timer 10000",
        "bao_bench mem 10000",
        "boost_bench mem 10000",
    ],
    "cooperation": [
        "bao_bench channel",
        "boost_bench channel",
        "go_bench channel",
        "bao_bench mutex",
        "boost_bench mutex",
        "bao_bench timer 100000",
        "boost_bench timer 100000",
        "go_bench timer 100000",
    ],
    "patched": [
        "patched_bench fetch 200",
        "patched_bench threads 200",
    ],
}

# (what is said, numerator, denominator, the most it may be, or None).
RATIOS = {
    "switch": [
        ("switch with exception state / the bare inline switch",
         "bao fiber-switch", "limit-inline switch", 1.5),
        ("switch with exception state / boost.context",
         "bao fiber-switch", "boost.context switch", 1.0),
        ("switch with exception state / swapcontext",
         "bao fiber-switch", "swapcontext switch", 1 / 50),
        ("switch of a coroutine / the bare inline switch",
         "bao switch", "limit-inline switch", None),
        ("switch of a coroutine / boost.context",
         "bao switch", "boost.context switch", None),
    ],
    "generator": [
        ("generator / stackless generator of C++20",
         "bao gen", "stackless gen", 1.8),
        ("generator / boost.coroutine2",
         "bao gen", "boost.coroutine2 gen", 0.5),
        ("the bare inline switch with exception state / stackless",
         "limit-inline+eh gen", "stackless gen", None),
        ("by next() / by range-for", "bao gen-next", "bao gen", None),
        ("yield.from four deep / direct", "bao gen-from4", "bao gen", None),
    ],
    "tasks": [
        (what + ", bao / boost.fiber", "bao " + test, "boost.fiber " + test,
         None)
        for what, test in [
            ("yield", "yield"),
            ("round robin of 10,000", "rr"),
            ("spawn and join, one by one", "spawn"),
            ("spawn and join, 1,000 at a time", "spawn-batch"),
            ("CPU time of a sleep", "timer"),
            ("resident bytes of a parked task", "mem"),
        ]
    ] + [
        (what + ", bao / Go", "bao " + test, "go " + test, None)
        for what, test in [
            ("yield", "yield"),
            ("spawn and join, one by one", "spawn"),
            ("spawn and join, 1,000 at a time", "spawn-batch"),
        ]
    ],
    "cooperation": [
        ("%s, bao / %s" % (what, peer), "bao " + test, lib + " " + test, most)
        for what, test, most in [
            ("channel without a buffer", "channel", 1 / 3),
            ("channel of 128 slots", "channel-128", 1.0),
            ("CPU time of 100,000 tasks that sleep", "timer", 0.8),
        ]
        for lib, peer in [("boost.fiber", "boost.fiber"), ("go", "Go")]
    ] + [
        ("mutex handed over, bao / boost.fiber", "bao mutex",
         "boost.fiber mutex", 0.5),
    ],
    "patched": [
        ("memory asked for by 200 libcurl fetches, tasks / threads",
         "bao fetch_space", "threads fetch_space", 0.25),
        ("memory occupied by them, libcurl's own in both, tasks / threads",
         "bao fetch_memory", "threads fetch_memory", None),
        ("time of 200 libcurl fetches, tasks / threads",
         "bao fetch", "threads fetch", None),
    ],
}

ECHO_SERVERS = {
    "bao": ["bench_echo_server", "0"],
    "epoll": ["echo_epoll", "0", "short"],
}
HTTP_CONNECTIONS = [100, 1000]
HTTP_LEAST_RATE = 1.0
ECHO_CONNECTIONS = [64, 1000]
ECHO_BYTES = [64, 4096]
ECHO_MOST_CPU = 1.05
ECHO_CALLS_APART = 0.1

PARSE_MOST = 1.5

CORES = sorted(os.sched_getaffinity(0))


def stop(message):
    sys.exit("compare: " + message)


def pinned(core, command):
    """The command, bound to a core of those we have (if there is taskset)."""
    if not shutil.which("taskset") or len(CORES) < 2:
        return command
    return ["taskset", "-c", str(CORES[core])] + command


def build(folder, topic):
    """Builds the topic's programs, says which are missing; where they are."""
    steps = [
        ["cmake", "--preset", "bench", "-S", ROOT, "-B", folder],
        ["cmake", "--build", folder, "--target", "bench_" + topic],
    ]
    for step in steps:
        done = subprocess.run(step, cwd=ROOT, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            stop(done.stdout + "cannot be built")
    return folder / "tests" / "bench"


def verdict(met):
    return "met" if met else "MISSED"


# ---- micro benchmarks -------------------------------------------------------


def run_once(programs, command):
    """{'LIB TEST': (value, unit)} of one run of one program."""
    name, *arguments = command.split()
    # The last core, as interrupts like the first.
    done = subprocess.run(pinned(-1, [programs / name] + arguments),
                          stdout=subprocess.PIPE, text=True, timeout=300)
    if done.returncode != 0:
        stop("%s ended with %d" % (command, done.returncode))
    lines = [line.split() for line in done.stdout.splitlines()]
    return {lib + " " + test: (float(value), unit)
            for lib, test, value, unit in lines}


def compare_micro(programs, topic, rounds):
    """Measures and prints one topic; whether all its targets were met."""
    commands = PROGRAMS[topic]
    for name in dict.fromkeys(c.split()[0] for c in commands):
        if not (programs / name).exists():
            print("%s: not built here, its figures are missing" % name)
            commands = [c for c in commands if c.split()[0] != name]

    figures = collections.defaultdict(list)  # 'LIB TEST': a value per round
    units = {}
    for _ in range(rounds):
        for command in commands:
            for key, (value, unit) in run_once(programs, command).items():
                figures[key].append(value)
                units[key] = unit

    print("%-32s %10s %10s %10s" % ("", "median", "least", "most"))
    for key, values in figures.items():
        print("%-32s %10.2f %10.2f %10.2f %s" % (
            key, statistics.median(values), min(values), max(values),
            units[key]))

    print("\nmedian of the ratios of %d rounds" % rounds)
    all_met = True
    for what, numerator, denominator, most in RATIOS[topic]:
        if not figures[numerator] or not figures[denominator]:
            print("%-56s not measured" % what)
            all_met = all_met and most is None
            continue
        ratio = statistics.median(
            a / b for a, b in zip(figures[numerator], figures[denominator]))
        line = "%-56s %6.3f" % (what, ratio)
        if most is not None:
            line += "  target <= %.3g  %s" % (most, verdict(ratio <= most))
            all_met = all_met and ratio <= most
        print(line)
    return all_met


# ---- the echo server --------------------------------------------------------


class Server:
    """A server that runs for the length of a with block."""

    def __init__(self, command):
        self.command = pinned(0, command)

    def __enter__(self):
        # A file, not a pipe: nobody reads on after the first line.
        self.output = tempfile.NamedTemporaryFile("w+")
        self.process = subprocess.Popen(self.command, stdout=self.output)
        self.pid = str(self.process.pid)
        try:
            self.port = self.wait_for_port()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait_for_port(self):
        for _ in range(500):
            line = pathlib.Path(self.output.name).read_text()
            if line.startswith("listening on ") and "\n" in line:
                return line.split("\n")[0].rpartition(":")[2]
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        stop("%s does not say 'listening on 127.0.0.1:PORT'" % self.command)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.output.close()


def echo_server(programs, name):
    program, *arguments = ECHO_SERVERS[name]
    return Server([programs / program] + arguments)


def load(programs, server, connections, size, seconds):
    """The command that loads the server."""
    return pinned(1, [programs / "loadgen", "127.0.0.1", server.port,
                      str(connections), str(size), str(seconds), server.pid])


def result_of(done):
    line = done.stdout.strip()
    if done.returncode != 0 or not line.startswith("{"):
        stop("loadgen ended with %d: %s" % (done.returncode, line))
    return json.loads(line)


def echo_once(programs, name, connections, size, seconds):
    """CPU time of the server for a request, in microseconds."""
    with echo_server(programs, name) as server:
        done = subprocess.run(
            load(programs, server, connections, size, seconds),
            stdout=subprocess.PIPE, text=True)
    return result_of(done)["server_cpu_us"]


def count_calls(programs, name, connections, size, seconds):
    """System calls of the server for a request; None where perf cannot."""
    if not shutil.which("perf"):
        print("system calls: cannot be counted here, there is no perf")
        return None
    with echo_server(programs, name) as server, \
            tempfile.NamedTemporaryFile("r") as counted:
        # perf counts in the server for as long as the load runs.
        done = subprocess.run(
            ["perf", "stat", "-x", ",", "-o", counted.name,
             "-e", "raw_syscalls:sys_enter", "-p", server.pid, "--"] +
            load(programs, server, connections, size, seconds),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        lines = [line.split(",") for line in counted.read().splitlines()
                 if "raw_syscalls:sys_enter" in line and line[0] != "#"]
    if not done.stdout or not lines or not lines[0][0].isdigit():
        print("system calls: cannot be counted here, perf says: %s" % (
            " ".join((done.stderr or str(lines)).split()[:24])))
        return None
    # Accepting the connections is in both figures, and weighs next to nothing.
    return int(lines[0][0]) / result_of(done)["total"]


def compare_echo(programs, rounds, seconds):
    """Measures and prints the echo; whether all its targets were met."""
    missing = [p for p in ["loadgen"] + [c[0] for c in ECHO_SERVERS.values()]
               if not (programs / p).exists()]
    if missing:
        stop("not built here: " + ", ".join(missing))
    if len(CORES) < 2 or not shutil.which("taskset"):
        print("server and load are not pinned to a core each: expect noise")
    all_met = True
    for size, connections in itertools.product(ECHO_BYTES, ECHO_CONNECTIONS):
        cpu = {"bao": [], "epoll": []}
        for i in range(rounds):
            order = ["bao", "epoll"] if i % 2 == 0 else ["epoll", "bao"]
            for name in order:
                cpu[name].append(
                    echo_once(programs, name, connections, size, seconds))
        ratios = [a / b for a, b in zip(cpu["bao"], cpu["epoll"])]
        ratio = statistics.median(ratios)
        met = ratio <= ECHO_MOST_CPU
        print("%d connections, messages of %d bytes, %d pairs" % (
            connections, size, rounds))
        for name, values in cpu.items():
            print("  %-6s server CPU a request, us: median %.3f, "
                  "least %.3f, most %.3f" % (
                      name, statistics.median(values), min(values),
                      max(values)))
        print("  CPU ratio: median of pairs %.3f (%.3f to %.3f)"
              "  target <= %.2f  %s" % (ratio, min(ratios), max(ratios),
                                        ECHO_MOST_CPU, verdict(met)))
        all_met = all_met and met

        calls = {name: count_calls(programs, name, connections, size, seconds)
                 for name in cpu}
        if None in calls.values():
            all_met = False
            continue
        met = abs(calls["bao"] - calls["epoll"]) <= ECHO_CALLS_APART
        print("  system calls a request: bao %.3f, epoll %.3f"
              "  target: within %.1f  %s" % (
                  calls["bao"], calls["epoll"], ECHO_CALLS_APART,
                  verdict(met)), flush=True)
        all_met = all_met and met
    return all_met


# ---- the web server ---------------------------------------------------------

NGINX = """
daemon off; master_process off; worker_processes 1; pid %(folder)s/nginx.pid;
error_log %(folder)s/nginx.log; worker_rlimit_nofile 8192;
events { worker_connections 4096; }
http {
  access_log off; sendfile on; keepalive_requests 100000000;
  types { text/html html; }
  client_body_temp_path %(folder)s; proxy_temp_path %(folder)s;
  fastcgi_temp_path %(folder)s; uwsgi_temp_path %(folder)s;
  scgi_temp_path %(folder)s;
  server { listen 127.0.0.1:%(port)d backlog=4096; root %(folder)s; }
}
"""


class Nginx:
    """nginx with one worker, for the length of a with block."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        conf = pathlib.Path(folder) / "nginx.conf"
        conf.write_text(NGINX % {"folder": folder, "port": self.port})
        self.command = pinned(0, ["nginx", "-c", str(conf)])

    def __enter__(self):
        self.process = subprocess.Popen(self.command)
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self
            except OSError:
                time.sleep(0.01)
        self.__exit__()
        stop("nginx does not answer")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def requests_per_second(server, connections, seconds):
    command = pinned(1, ["wrk", "-t1", "-c%d" % connections,
                         "-d%ds" % max(1, round(seconds)),
                         "http://127.0.0.1:%s/small.html" % server.port])
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        print(said)
        stop("the load met errors")
    return float(said.split("Requests/sec:")[1].split()[0])


def compare_http(programs, rounds, seconds):
    """Measures and prints the web server; whether all targets were met."""
    for program in ["nginx", "wrk"]:
        if not shutil.which(program):
            stop("there is no " + program)
    all_met = True
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(folder).chmod(0o755)
        (pathlib.Path(folder) / "small.html").write_text("x" * 1024)
        bao = [programs / "bench_http_server", "0", "--root", folder]
        for connections in HTTP_CONNECTIONS:
            rates = {"bao": [], "nginx": []}
            for _ in range(rounds):
                for name in rates:
                    with Server(bao) if name == "bao" else Nginx(
                            folder) as server:
                        rates[name].append(requests_per_second(
                            server, connections, seconds))
            ratio = statistics.median(
                a / b for a, b in zip(rates["bao"], rates["nginx"]))
            met = ratio >= HTTP_LEAST_RATE
            print("%d connections, 1 KiB: requests a second, medians: bao %d, "
                  "nginx %d; ratio %.3f  target >= %.2f  %s" % (
                      connections, statistics.median(rates["bao"]),
                      statistics.median(rates["nginx"]), ratio,
                      HTTP_LEAST_RATE, verdict(met)), flush=True)
            all_met = all_met and met
        with Server(bao + ["--threads", "2"]) as server:
            print("two threads on one core, 100 connections: "
                  "%d requests a second" % requests_per_second(
                      server, 100, seconds))
    return all_met


# ---- the header -------------------------------------------------------------


def parse(source, *options):
    """CPU seconds that the compiler takes for a file, and what it says."""
    compiler = os.environ.get("CXX", "g++").split()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        pinned(-1, compiler + ["-std=c++17", "-fsyntax-only", "-x", "c++",
                               *options, str(source)]),
        stderr=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        stop(done.stderr + "cannot be parsed")
    return (after.ru_utime - before.ru_utime +
            after.ru_stime - before.ru_stime, done.stderr)


def compare_parse(rounds):
    """Measures and prints the header; whether its target was met."""
    header = ROOT / "single_include" / "bao.hpp"
    with tempfile.TemporaryDirectory() as folder:
        # One dot before what the header itself includes, more before the rest.
        own = [line[2:] for line in parse(header, "-H")[1].splitlines()
               if line.startswith(". ")]
        included = pathlib.Path(folder) / "included.hpp"
        included.write_text(
            "".join('#include "%s"\n' % name for name in own))
        times = [(parse(header)[0], parse(included)[0])
                 for _ in range(rounds)]
    for name, values in zip(["bao.hpp", "what it includes"], zip(*times)):
        print("%-18s median %.3f s of CPU, least %.3f, most %.3f" % (
            name, statistics.median(values), min(values), max(values)))
    ratio = statistics.median(whole / part for whole, part in times)
    met = ratio <= PARSE_MOST
    print("ratio: median of %d pairs %.3f  target <= %.2f  %s" % (
        rounds, ratio, PARSE_MOST, verdict(met)))
    return met


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("topic", choices=[*PROGRAMS, "echo", "http", "parse"])
    parser.add_argument("--rounds", type=int, default=9,
                        help="how often, 9 unless said")
    parser.add_argument("--seconds", type=float, default=2,
                        help="length of one run of the echo, 2 unless said")
    parser.add_argument("--build", type=pathlib.Path,
                        default=ROOT / "build" / "bench",
                        help="the build folder, build/bench unless said "
                        "(another compiler: CXX=clang++ and a new folder)")
    options = parser.parse_args()

    # A thousand clients need a thousand descriptors on either side.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Ended from outside, take the server along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))

    if options.topic == "parse":
        return 0 if compare_parse(options.rounds) else 1
    programs = build(options.build.resolve(), options.topic)
    if options.topic == "http":
        met = compare_http(programs, options.rounds, options.seconds)
    elif options.topic == "echo":
        met = compare_echo(programs, options.rounds, options.seconds)
    else:
        met = compare_micro(programs, options.topic, options.rounds)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
