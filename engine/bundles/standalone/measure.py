"""Measures a program of a bundle on this machine: the time of a call and of loading, and the memory of the process.

    python measure.py predict onnx [--calls=1000] [--batch=1] [--cores=0,1] [BUNDLE]

It needs what check.py needs, and check.py in the same folder. A call takes arrays of numpy and returns arrays of numpy.
All threads stay on the given cores.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "worst": 100}
PROFILED = 50  # calls in which the parts of a program are measured


def parse(arguments, programs=("stablehlo", "onnx")):
    """Returns the arguments of the command line."""
    parser = argparse.ArgumentParser(prog="measure.py", description="Measures a program of a bundle.")
    parser.add_argument("entry", help="entry point, such as predict")
    parser.add_argument("program", choices=programs, help="how it is run")
    parser.add_argument("bundle", nargs="?", default=Path(__file__).resolve().parent, help="a folder or a zip file")
    parser.add_argument("--calls", type=int, default=1000, help="measured calls (default: 1000)")
    parser.add_argument("--warmup", type=int, default=100, help="calls before them (default: 100)")
    parser.add_argument("--batch", type=int, help="rows of a call (default: 1)")
    parser.add_argument("--cores", default="", help="numbers of cores: 0,1 (default: all)")
    parser.add_argument("--json", help="file for the results, with the time of each part of the program")
    return parser.parse_args(arguments)


class Calls:
    """The inputs of any number of calls, made of the samples.

    Args:
        entry: the entry point in bundle.json.
        samples: its samples.
        rows: rows of each call, for a program that takes any number.
    """

    def __init__(self, entry, samples, rows):
        import check
        import numpy as np

        symbol = check.rows_of(entry)

        def taken(x, name, first):
            if isinstance(symbol, str) and entry["inputs"][name]["shape"][:1] == [symbol]:
                return np.ascontiguousarray(x[(first + np.arange(rows)) % len(x)])
            return x

        given = {name: samples[f"inputs/{name}"] for name in entry["inputs"]}
        self._state = {name: taken(given.pop(name), name, 0) for name in entry["state"]}
        # Samples of a model with memory are frames. The calls of others start at one row after the other.
        count = max((len(x) for x in given.values()), default=1)
        self._inputs = [
            {n: taken(x[i], n, 0) if self._state else taken(x, n, i) for n, x in given.items()} for i in range(count)
        ]
        self._next = 0

    def next(self):
        """Returns the inputs of the next call."""
        return {**self._inputs[self._next % len(self._inputs)], **self._state}

    def run(self, call, count):
        """Calls a function, and returns the seconds of each call."""
        seconds = []
        for _ in range(count):
            inputs = self.next()
            start = time.perf_counter_ns()
            outputs = call(inputs)
            seconds.append((time.perf_counter_ns() - start) / 1e9)
            self._state = {name: outputs[name] for name in self._state}
            self._next += 1
        return seconds


def percentile(ordered, percent):
    """Returns the smallest value that is at least as large as this part of all values."""
    return ordered[-(-len(ordered) * percent // 100) - 1]


def seconds_of_call(seconds):
    """Returns the time of a part in a call. Of all measured times, the longest tenth was interrupted by something."""
    usual = sorted(seconds)[: -(-len(seconds) * 9 // 10)]
    return sum(usual) / len(usual) * len(seconds) / PROFILED


def load_stablehlo(bundle, entry, calls, cores):
    """Returns the compiled program as a function, what runs it, and a function that measures its parts."""
    import check
    import jax

    jitted, weights, library = check.compile_stablehlo(bundle, entry["programs"]["stablehlo"])
    compiled = jitted.lower(*weights, calls.next()).compile()

    def call(inputs):
        return jax.device_get(compiled(*weights, inputs))

    def parts():
        text = compiled.as_text() or ""
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                calls.run(call, PROFILED)
            files = [str(path) for path in Path(folder).rglob("*.xplane.pb")]
            profile = jax.profiler.ProfileData.from_file(files[0])
            found = {}
            for plane in profile.planes:
                is_host = plane.name.startswith("/host:")  # the events of a device are named after its kernels
                for event in (event for line in plane.lines for event in line.events):
                    name = event.name if is_host else dict(event.stats).get("hlo_op", "")
                    if f"%{name} = " in text:
                        found.setdefault(name, []).append(event.duration_ns / 1e9)
        seconds = {name: seconds_of_call(times) for name, times in found.items()}
        return {"hlo": text, "seconds": seconds, "has_weights": bool(weights)}

    return call, library, parts


def load_onnx(bundle, entry, calls, cores):
    """Returns the same of an ONNX program."""
    import check

    def session(prefix=None):
        [onnxruntime] = check.installed("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = cores, 1
        if prefix:
            options.enable_profiling, options.profile_file_prefix = True, prefix
        return check.load_onnx(bundle, entry["programs"]["onnx"], options)

    call, library = session()

    def parts():
        nodes = {}
        with tempfile.TemporaryDirectory() as folder:
            profiled, _ = session(os.path.join(folder, "profile"))
            calls.run(profiled, 1 + PROFILED)
            del profiled  # the end of a session writes its profile
            [file] = Path(folder).iterdir()
            for event in json.loads(file.read_bytes()):
                if event.get("cat") == "Node":
                    nodes.setdefault(event["name"], []).append(event)
        return {
            "nodes": [
                # The first call allocates memory.
                {"name": name, "seconds": seconds_of_call([e["dur"] / 1e6 for e in found[1:]]), **found[-1]["args"]}
                for name, found in nodes.items()
            ]
        }

    return call, library, parts


LOADERS = {"stablehlo": ("jax", load_stablehlo), "onnx": ("onnxruntime", load_onnx)}


def memory():
    """Returns the largest memory of this process until now in bytes; 0 where the system does not state it."""
    # The maximum of getrusage is, after a fork, at least the memory of the parent.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def measure(args, library, load):
    """Returns the results as a dict; times in seconds, sizes in bytes.

    Args:
        args: the command line.
        library: name of the module that runs the program.
        load: function like `load_stablehlo`.
    """
    if args.cores:  # before the libraries start their threads, one for each core
        os.sched_setaffinity(0, map(int, args.cores.split(",")))
    cores = sorted(os.sched_getaffinity(0))
    import check

    bundle = check.Bundle(args.bundle)
    if args.entry not in bundle.manifest["entries"]:
        raise check.BundleError(f"no such entry point. Found: {', '.join(bundle.manifest['entries'])}.")
    entry = bundle.manifest["entries"][args.entry]
    if args.program in LOADERS and args.program not in entry["programs"]:
        raise check.BundleError(f"no such program. Found: {', '.join(entry['programs'])}.")
    rows = check.rows_of(entry)
    rows = args.batch or 1 if isinstance(rows, str) else rows
    if args.batch not in (None, rows):
        raise check.BundleError(f"--batch={args.batch}: the program takes only batches of {rows}.")
    calls = Calls(entry, bundle.arrays(entry["samples"]), rows)
    start = time.perf_counter()
    check.installed(library)
    imported = time.perf_counter()
    call, name, parts = load(bundle, entry, calls, len(cores))
    loaded = time.perf_counter()
    first = calls.run(call, 1)[0]
    calls.run(call, args.warmup)
    gc.collect()
    gc.disable()
    seconds = sorted(calls.run(call, args.calls))
    gc.enable()
    found = {"entry": args.entry, "program": args.program, "library": name, "batch": rows, "cores": cores}
    found.update({key: percentile(seconds, percent) for key, percent in PERCENTILES.items()})
    found.update(calls=args.calls, first=first, load=loaded - imported, memory=memory())
    found["import"] = imported - start
    return {**found, **parts()} if args.json else found


def main(arguments):
    """Measures a program, prints a line, and returns the exit code."""
    args = parse(arguments)
    return run(args, *LOADERS[args.program])


def run(args, library, load):
    """Measures as `measure`, prints a line, and returns the exit code."""
    import check

    try:
        found = measure(args, library, load)
    except (check.BundleError, check.Absent) as error:
        print(f"measure.py: {args.entry} {args.program}: {error}", file=sys.stderr)
        return 1
    if args.json:
        Path(args.json).write_text(json.dumps(found))
    texts = [f"{name} {1e3 * found[name]:.3f} ms" for name in (*PERCENTILES, "first", "load")]
    memory = f"memory {found['memory'] / 2**20:.0f} MiB"
    print(f"{args.entry} {args.program} ({found['library']}), batch {found['batch']}: {', '.join([*texts, memory])}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
