"""Runs gimli and its peers on the same works in turn and prints what they took: compare.py GIMLI_PEER [options].

Every contender is a process of its own that has loaded the same data and initial weights. Before anything is timed its
meta-gradient is compared with gimli's. Then rounds go over all contenders, several meta-gradients a round. One that
fails, or that takes more time or memory than the limits, is a row with the reason.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

import report
import work

HERE = pathlib.Path(__file__).parent
PEERS = ("torch", "jax", "optax", "higher", "torchopt")


class Failure(Exception):
    """A contender is out, for this reason."""


class Contender:
    def __init__(self, name, command, is_long, arguments):
        self.name, self.is_long = name, is_long
        self.limits = arguments
        self.repetitions, self.milliseconds = {}, {}  # of each number of threads that it is measured with
        environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads), PYTHONWARNINGS="ignore")
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, text=True, env=environment)
        self.read()

    def read(self):
        deadline = time.monotonic() + self.limits.limit
        while not select.select([self.process.stdout], [], [], 0.05)[0]:
            if time.monotonic() > deadline:
                raise Failure(f"takes more than {self.limits.limit:g} s")
            if self.resident_bytes() > self.limits.limit_gb * 1e9:
                raise Failure(f"takes more than {self.limits.limit_gb:g} GB")
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise Failure((self.errors.read().strip().splitlines() or ["ended without a word"])[-1])
        return line

    def resident_bytes(self):
        pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(pages[1]) * os.sysconf("SC_PAGE_SIZE")

    def ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # read() says why it ended
        return json.loads(self.read())

    def gradient(self, file):
        """The first one, which in a work of long ones is followed by one that is measured, and no others."""
        self.counted = self.ask(f"gradient {file}")
        first = self.counted.pop("milliseconds")
        if self.is_long and first > 10000:
            self.milliseconds[self.limits.threads] = self.ask("measure 1")
        return np.fromfile(file)

    def prepare(self):
        """Tries one thread, too, and keeps a number of threads unless another one is faster by a third."""
        if self.milliseconds:
            return
        least = {}
        for threads in dict.fromkeys((self.limits.threads, 1)):
            if not least or (least[self.limits.threads] < 5000 and self.ask(f"threads {threads}")):
                first = self.ask("measure 1")[0]
                least[threads] = min(self.ask(f"measure {5 if first < 100 else 3 if first < 3000 else 1}"))
        for threads, milliseconds in least.items():
            if milliseconds < 1.5 * min(least.values()):
                self.repetitions[threads] = max(1, min(50, int(self.limits.round_ms / milliseconds)))
                self.milliseconds[threads] = []

    def measure(self):
        for threads, count in self.repetitions.items():
            self.ask(f"threads {threads}")
            self.milliseconds[threads] += self.ask(f"measure {count}")

    def best(self):
        """The number of threads with which it was fastest, and the milliseconds."""
        return min(self.milliseconds.items(), key=lambda item: min(item[1]))

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()


def commands(spec, folder, arguments):
    python, threads = sys.executable, arguments.threads
    gimli = lambda way: [arguments.gimli_peer, folder, way, threads]
    torch = lambda library: [python, HERE / "torch_peer.py", folder, library, threads]
    jax = lambda *options: [python, HERE / "jax_peer.py", folder, *options]
    result = {"gimli": gimli("own"), "gimli, captured": gimli("captured"),
              "gimli on libtorch's operators": gimli("libtorch")}
    if spec["tasks"] > 1:
        result["gimli, vmap"] = gimli("vmap")
    if "replay" in spec["strategies"]:
        result["gimli, replay"] = gimli("replay")
    if "binomial" in spec["strategies"]:
        result["gimli, replay with 10 states"] = gimli("binomial")
    result["jax, jit and vmap"] = jax()
    if spec["strategies"]:
        result["jax, each step checkpointed"] = jax("checkpoint")
    result |= {"torch.func, vmap": torch("func"), "torch, by hand": torch("torch"), "higher": torch("higher"),
               "torchopt": torch("torchopt")}
    if arguments.only:
        result = {name: command for name, command in result.items()
                  if name == "gimli" or any(word in name for word in arguments.only)}
    return result


def run(spec, folder, arguments):
    """The rows of a work, one a contender."""
    rows, everyone, gradients = [], [], {}

    def attempt(name, function):
        try:
            return function()
        except Failure as failure:
            rows.append({"work": spec["name"], "contender": name, "failure": str(failure)})

    def alive():
        out = {row["contender"] for row in rows}
        return [contender for contender in everyone if contender.name not in out]

    try:
        for name, command in commands(spec, folder, arguments).items():
            if contender := attempt(name, lambda: Contender(name, command, spec["long"], arguments)):
                everyone.append(contender)
                gradients[name] = attempt(name, lambda: contender.gradient(folder / "gradient"))
        for contender in alive():
            attempt(contender.name, contender.prepare)
        begin = time.monotonic()
        for round in range(arguments.rounds):
            if round == 0 or time.monotonic() - begin < arguments.seconds:
                for contender in alive():
                    attempt(contender.name, contender.measure)
        ours = gradients["gimli"]
        for contender in alive():
            threads, milliseconds = contender.best()
            rows.append({"work": spec["name"], "contender": contender.name, "min_ms": min(milliseconds),
                         "median_ms": statistics.median(milliseconds), "times": len(milliseconds), "threads": threads, "peak_bytes": contender.ask("peak"), **contender.counted,
                         "difference": np.linalg.norm(gradients[contender.name] - ours) / np.linalg.norm(ours)})
    finally:
        for contender in everyone:
            contender.stop()
    order = list(commands(spec, folder, arguments))
    return sorted(rows, key=lambda row: order.index(row["contender"]))


def gemm_flops(threads, dtype):
    """Floating-point operations a second in a product of large matrices."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.rand(2, 2048, 2048, dtype=getattr(torch, dtype))
    seconds = []
    while len(seconds) < 30 and sum(seconds) < 5:
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return 2 * 2048**3 / min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gimli_peer", help="gimli's contender, as built from gimli_peer.cpp")
    parser.add_argument("--works", default="abcdefg", help="letters of the works to run (default: %(default)s)")
    parser.add_argument("--match", default="", help="only works whose names contain this")
    parser.add_argument("--only", action="append", help="gimli and only contenders whose names contain this; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all contenders at most (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="after which a work begins no other round (default: %(default)s)")
    parser.add_argument("--round-ms", type=float, default=300, help="milliseconds of a contender in a round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each, or one if that is faster (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--limit", type=float, default=60, help="seconds for a meta-gradient, or for compiling it (default: %(default)s)")
    parser.add_argument("--limit-gb", type=float, default=12, help="memory for a contender (default: %(default)s)")
    parser.add_argument("--out", help="a file for the results, as in results.json; results.md and results.png go beside it")
    arguments = parser.parse_args()

    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    results = {"date": datetime.date.today().isoformat(), "processor": cpu, "cores": os.cpu_count(),
               "threads": arguments.threads, "dtype": arguments.dtype, "flops_per_second": gemm_flops(arguments.threads, arguments.dtype),
               "versions": {"Python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PEERS}},
               "rows": []}
    print(report.heading(results))
    for letter in arguments.works:
        for each in work.WORKS[letter]:
            if arguments.match not in each["name"]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                rows = run(work.write(folder, each, arguments.dtype), pathlib.Path(folder), arguments)
            results["rows"] += rows
            print("\n" + report.table(rows, results["flops_per_second"]), flush=True)
            if arguments.out:
                report.write(results, arguments.out)


if __name__ == "__main__":
    main()
