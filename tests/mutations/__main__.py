"""Applies small faults to copies of the engine's code, and runs the tests that must catch each of them.

    python -m tests.mutations               # all mutations, about ten minutes of CPU time
    python -m tests.mutations NAME...       # some of them
    python -m tests.mutations --list        # their names and sentences

The exit code is 1 if a mutation survives, or if its tests fail without it.
"""

import argparse
import queue
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutations.trees import LIMIT_S, Mutation, Outcome, copy_tree, mutated, read_mutations, run_tests


def main(argv: Sequence[str]) -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations to apply; all if none is given")
    parser.add_argument("--list", action="store_true", help="list the mutations")
    parser.add_argument("--jobs", type=int, default=2, help="number of copies that are tested at once")
    options = parser.parse_args(argv)
    mutations = {mutation.name: mutation for mutation in read_mutations()}
    if unknown := [name for name in options.names if name not in mutations]:
        parser.error(f"no mutation {', '.join(unknown)}; see --list")
    chosen = [mutations[name] for name in options.names or mutations]
    if options.list:
        for mutation in chosen:
            print(f"{mutation.name}: {mutation.breaks}")
        return 0
    with tempfile.TemporaryDirectory(prefix="convoy-mutations-") as folder:
        return _run(chosen, Path(folder), max(1, options.jobs))


def _run(mutations: Sequence[Mutation], folder: Path, jobs: int) -> int:
    """Tests the unchanged code, then each mutation; prints a line for each."""
    cache = folder / "cache"
    trees: queue.Queue[Path] = queue.Queue()
    first = folder / "0"
    copy_tree(first)
    tests = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
    unchanged = run_tests(first, tests, cache, len(tests) * LIMIT_S)
    print(f"unchanged code: {unchanged.seconds:.0f} s", flush=True)
    if unchanged.code:
        print(f"{unchanged.text}\nThe tests fail without a mutation.")
        return 1
    for number in range(jobs):
        if number:
            shutil.copytree(first, folder / str(number))
        trees.put(folder / str(number))

    def test(mutation: Mutation) -> tuple[Mutation, Outcome]:
        tree = trees.get()
        try:
            with mutated(mutation, tree):
                return mutation, run_tests(tree, mutation.tests, cache)
        finally:
            trees.put(tree)

    survivors = []
    width = max(len(mutation.name) for mutation in mutations)
    with ThreadPoolExecutor(jobs) as pool:
        for mutation, outcome in pool.map(test, mutations):
            caught_by = outcome.caught_by if outcome.is_caught else f"NOT CAUGHT (pytest exit code {outcome.code})"
            print(f"{mutation.name:{width}}  {outcome.seconds:5.1f} s  {caught_by}", flush=True)
            if not outcome.is_caught:
                survivors.append(mutation.name)
                print("\n".join(outcome.text.splitlines()[-15:]), flush=True)
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} mutations are caught.")
    if survivors:
        print(f"Not caught: {', '.join(survivors)}.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
