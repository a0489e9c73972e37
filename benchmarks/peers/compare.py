"""Runs gimli and its peers on the same works in turn and prints what they took: compare.py GIMLI_PEER [options].

Every contender is a process of its own that has loaded the same data and initial weights. Before anything is timed its
meta-gradient is compared with gimli's. Then rounds go over all contenders, several meta-gradients a round.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

import numpy as np

import work

HERE = pathlib.Path(__file__).parent


class Contender:
    def __init__(self, name, command, threads):
        self.name = name
        self.milliseconds = []
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), PYTHONWARNINGS="ignore")
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, env=environment)
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.stderr.read().strip().splitlines()[-1])
        return line

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.read())

    def gradient(self, file):
        self.ask(f"gradient {file}")
        return np.fromfile(file, "<f4").astype(float)

    def measure(self, count):
        self.milliseconds += self.ask(f"measure {count}")

    def stop(self):
        self.process.stdin.close()
        self.process.wait()


def contenders(gimli_peer, folder, threads, only):
    python = sys.executable
    commands = {
        "gimli": [gimli_peer, folder, "own", threads],
        "gimli, captured": [gimli_peer, folder, "captured", threads],
        "gimli on libtorch's operators": [gimli_peer, folder, "libtorch", threads],
        "jax, jit and vmap": [python, HERE / "jax_peer.py", folder],
        "torch.func, vmap": [python, HERE / "torch_peer.py", folder, "func", threads],
        "torch, by hand": [python, HERE / "torch_peer.py", folder, "torch", threads],
        "higher": [python, HERE / "torch_peer.py", folder, "higher", threads],
        "torchopt": [python, HERE / "torch_peer.py", folder, "torchopt", threads],
    }
    started = []
    for name, command in commands.items():
        if only and not name.startswith("gimli") and not any(word in name for word in only):
            continue
        try:
            started.append(Contender(name, command, threads))
        except RuntimeError as error:
            print(f"{name}: does not run here: {error}", file=sys.stderr)
    return started


def repetitions(contender, milliseconds):
    """So many that a round takes about that long."""
    first = contender.ask("measure 1")[0]
    return max(1, min(50, int(milliseconds / first)))


def run(spec, folder, arguments):
    everyone = contenders(arguments.gimli_peer, folder, arguments.threads, arguments.only)
    gradients, counts = {}, {}
    for contender in list(everyone):
        try:
            gradients[contender.name] = contender.gradient(folder / "gradient.f32")
            counts[contender.name] = repetitions(contender, arguments.round_ms)
        except RuntimeError as error:
            print(f"{contender.name}: does not run here: {error}", file=sys.stderr)
            everyone.remove(contender)
    for _ in range(arguments.rounds):
        for contender in everyone:
            contender.measure(counts[contender.name])
    ours = gradients["gimli"]
    least = min(everyone[0].milliseconds)
    print(f"\n### {spec['name']}\n")
    print("| | ms: min | median | times gimli's | peak MB | difference to gimli's |")
    print("|---|---:|---:|---:|---:|---:|")
    rows = []
    for contender in everyone:
        peak = contender.ask("peak")
        contender.stop()
        difference = np.linalg.norm(gradients[contender.name] - ours) / np.linalg.norm(ours)
        row = {"work": spec["name"], "contender": contender.name, "min_ms": min(contender.milliseconds),
               "median_ms": statistics.median(contender.milliseconds), "peak_bytes": peak, "difference": difference}
        rows.append(row)
        print(f"| {row['contender']} | {row['min_ms']:.3g} | {row['median_ms']:.3g} | {row['min_ms'] / least:.2f} "
              f"| {peak / 1e6:.0f} | {difference:.0e} |", flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gimli_peer", help="gimli's contender, as built from gimli_peer.cpp")
    parser.add_argument("--works", default="ab", help="letters of the works to run (default: %(default)s)")
    parser.add_argument("--match", default="", help="only works whose names contain this")
    parser.add_argument("--only", action="append", help="only peers whose names contain this, and gimli; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="rounds over all contenders (default: %(default)s)")
    parser.add_argument("--round-ms", type=float, default=500, help="milliseconds of a contender in a round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each (default: %(default)s)")
    parser.add_argument("--out", help="a file for the rows as JSON")
    arguments = parser.parse_args()

    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "jax", "optax", "higher", "torchopt"))
    print(f"{cpu}, {os.cpu_count()} cores, {arguments.threads} threads, Python {platform.python_version()}, {versions}")
    rows = []
    for letter in arguments.works:
        for each in work.WORKS[letter]:
            if arguments.match not in each["name"]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                rows += run(work.write(folder, each), pathlib.Path(folder), arguments)
    if arguments.out:
        pathlib.Path(arguments.out).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
