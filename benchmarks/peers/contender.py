"""What every contender written in Python does: it answers on stdout to the lines of compare.py on stdin.

    gradient FILE    writes the meta-gradient (initial weights, then hyperparameters, one after the other, float64) and
                     answers the milliseconds that it took, with what was counted meanwhile: operators, flops
    threads COUNT    computes with so many threads from now on; answers whether it can
    measure COUNT    the milliseconds of so many meta-gradients
    peak             the most bytes the process had, beyond those after loading its inputs
"""

import json
import sys
import time

import numpy as np


def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field + ":"))


def serve(meta_gradient, counted=lambda function: (function(), {}), set_threads=None):
    """`meta_gradient` returns the gradients as arrays in the order of the meta-parameters, all computed; `counted` calls
    a function and returns its result and what it counted."""
    loaded = memory("VmRSS")
    print("ready", flush=True)
    for line in sys.stdin:
        command, *argument = line.split(maxsplit=1)
        if command == "gradient":
            begin = time.perf_counter()
            gradients, counts = counted(meta_gradient)
            answer = {"milliseconds": 1e3 * (time.perf_counter() - begin), **counts}
            np.concatenate([np.asarray(g).ravel() for g in gradients]).astype("float64").tofile(argument[0].strip())
        elif command == "threads":
            answer = set_threads is not None
            if set_threads:
                set_threads(int(argument[0]))
        elif command == "measure":
            answer = []
            for _ in range(int(argument[0])):
                begin = time.perf_counter()
                meta_gradient()
                answer.append(1e3 * (time.perf_counter() - begin))
        else:
            answer = memory("VmHWM") - loaded
        print(json.dumps(answer), flush=True)
