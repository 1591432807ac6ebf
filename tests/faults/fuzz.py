"""Damages files of a run directory, and runs every verb that reads them: no traceback, no hang, nothing wrong unsaid.

    python -m tests.faults.fuzz --cases 2000 --seed 1      # about 20 minutes on 2 cores
    python -m tests.faults.fuzz --case 17 --seed 1         # shows what one case does

A verb must give the result of the undamaged run, or name the damaged file. `damaged_files_test.py` runs a sample.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import engine
from engine.cli.main import main as convoy
from engine.config.text import field_texts
from engine.loop import stopping
from engine.planning import record
from engine.planning.record import Measured, PlanFile, Predicted
from engine.run.directory import RunDirectory
from tests import runs, zoo


class Predicting(zoo.Classify):
    """Has predictions."""

    def predict(self, model: Any, batch: Any) -> dict[str, Any]:
        """Returns the scores."""
        return {"scores": model(batch["x"])}


LIMIT_S = 120  # of a case; a damaged lease is waited for 20 s
SETTINGS: Mapping[str, Any] = dict(
    task__target="tests.faults.fuzz.Predicting",
    train__total="4 steps",
    checkpoint__every="2 steps",
    checkpoint__best="heldout/loss",
    checkpoint__best_mode="min",
    evaluations__heldout__every="2 steps",
    optimizer__target="optax.contrib.muon",
    optimizer__schedule="constant",
    cache__compiled=True,
    log__examples=True,
)


def make_run(path: Path, **settings: Any) -> Path:
    """Trains a run that has every file which a verb reads; `optimizer.json` only with Muon, which compiles longer."""
    config = runs.config(**{**SETTINGS, **settings})
    engine.train(config, workdir=path)
    engine.evaluate(path, step=2)
    directory = RunDirectory(path)
    stopping.write(directory, stopping.StopRecord.of(4, "the target is reached", field_texts(config)))
    predicted = Predicted(
        candidate="data=1", rows=16, machine={"margin": 0.5}, seconds={"compute": 2.0}, memory={"a": 3.0}
    )
    measured = Measured(step_s=1.0, data_wait=0.0, seconds=9.0, bytes=4, peak_bytes=5, attempt=1, time="")
    directory.plan.write_text(record.to_text(PlanFile(predicted, measured)))
    return path


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb that reads a run directory.

    Attributes:
        words: its command line; {run} and {out} are replaced.
        weight: how often it is run; those that compile take a second.
        alone: whether it needs a process of its own, which takes some seconds.
        result: returns what must not change, from the run, the output file and what was printed.
    """

    words: tuple[str, ...]
    weight: int
    result: Callable[[Path, Path, str], object] = lambda run, out, printed: printed
    alone: bool = False


def _file(run: Path, out: Path, printed: str) -> object:
    return out.read_bytes() if out.exists() else None


def _arrays(run: Path, out: Path, printed: str) -> object:
    """The digests of the arrays of the last step."""
    steps = sorted((run / "checkpoints").glob("[0-9]/manifest.json"))
    return json.loads(steps[-1].read_text())["arrays"] if steps else None


VERBS: Mapping[str, Verb] = {
    "config": Verb(("config", "{run}"), 20),
    "checkpoints": Verb(("checkpoints", "{run}"), 60),
    "verify": Verb(("checkpoints", "verify", "{run}"), 20),
    "export": Verb(("export", "{run}", "--out={out}.safetensors"), 6, _file),
    "goodput": Verb(("goodput", "{run}"), 60),
    "plans": Verb(("plan", "--runs", "{run}"), 30),
    "evaluate": Verb(("evaluate", "{run}"), 8),
    "follow": Verb(("evaluate", "{run}", "--follow", "--timeout=0.1 seconds"), 8),
    "predict": Verb(("predict", "{run}", "--out={out}.npz"), 6, _file),
    "resume": Verb(
        ("train", "--config={run}", "--workdir={run}", "--config.train.total=5 steps"), 6, _arrays
    ),
    "warm start": Verb(
        ("train", "--config={run}", "--workdir={out}", "--config.init.checkpoint={run}", "--config.train.total=1 step"),
        3,
        lambda run, out, printed: _arrays(out, out, printed),
    ),
    "explain": Verb(("explain", "--config={run}", "--no-collectives"), 2, alone=True),
    "compile": Verb(("compile", "--config={run}"), 1, lambda run, out, printed: None, alone=True),
    "data check": Verb(("data", "check", "--config={run}", "--json"), 1, lambda run, out, printed: None, alone=True),
    "supervise": Verb(
        ("supervise", "--restarts=0", "--", "train", "--config={run}", "--workdir={run}"), 2, _arrays, alone=True
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """One file that is damaged in one way, and one verb."""

    verb: str
    file: str
    damage: str
    seed: int

    def __str__(self) -> str:
        return f"{self.verb} after {self.file} has {self.damage} (seed {self.seed})"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a verb did."""

    code: int
    printed: str
    messages: str
    result: object = dataclasses.field(repr=False)


def cases(run: Path, count: int, seed: int, verbs: Mapping[str, Verb] = VERBS) -> list[Case]:
    """Returns random cases, the same for a seed."""
    rng = random.Random(seed)
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    stored = [file for file in files if not file.startswith("checkpoints/") or file.endswith(".json")]
    others = [file for file in files if file not in stored]
    names, weights = list(verbs), [verb.weight for verb in verbs.values()]
    found = []
    while len(found) < count:
        file = rng.choice(stored if rng.random() < 0.9 else others)
        case = Case(rng.choices(names, weights)[0], file, rng.choice(sorted(DAMAGES)), rng.randrange(10**6))
        if case.damage not in VALID.get(file, ()):
            found.append(case)
    return found


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(max(1, len(content) - 1))]


def _replace(content: bytes, rng: random.Random, new: bytes) -> bytes:
    """Replaces a word after a colon or comma by something else: a value of JSON, or of a line `name: value`."""
    places = [found.span(1) for found in re.finditer(rb"[:,\[]\s*(\"[^\"\n]*\"|[^\s\",\[\]{}:]+)", content)]
    begin, end = rng.choice(places or [(0, len(content))])
    return content[:begin] + new + content[end:]


def _other_type(content: bytes, rng: random.Random) -> bytes:
    places = [found.span(1) for found in re.finditer(rb"[:,\[]\s*(\"[^\"\n]*\"|-?[\d.e+-]+|true|false|null)", content)]
    begin, end = rng.choice(places or [(0, len(content))])
    new = rng.choice([b"[]", b"{}", b'{"a": [1]}']) if rng.random() < 0.5 else b"17.25"
    return content[:begin] + (new if content[begin : begin + 1] == b'"' else b'"x y"') + content[end:]


def _without_member(content: bytes, rng: random.Random) -> bytes:
    """Removes a member of the outermost object of a JSON file, or of a line of it."""
    lines = content.splitlines(keepends=True) if b"}\n{" in content else [content]
    number = rng.randrange(len(lines))
    try:
        value = json.loads(lines[number])
        value.pop(rng.choice(sorted(value)))
    except (ValueError, AttributeError, IndexError, TypeError):
        return _cut(content, rng)
    lines[number] = json.dumps(value).encode() + b"\n"
    return b"".join(lines)


def _insert(content: bytes, rng: random.Random, new: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + new + content[at:]


DAMAGES: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "1e999": lambda content, rng: _replace(content, rng, b"1e999"),
    "a long number": lambda content, rng: _replace(content, rng, rng.choice([b"9" * 30, b"9" * 400, b"9" * 5000])),
    "another type": _other_type,
    "been cut": _cut,
    "deep nesting": lambda content, rng: _replace(content, rng, b"[" * 100_000),
    "invalid UTF-8": lambda content, rng: _insert(content, rng, b"\xff\xfe"),
    "NUL bytes": lambda content, rng: _insert(content, rng, b"\0" * 16),
    "a missing member": _without_member,
    "no content": lambda content, rng: b"",
    "NaN": lambda content, rng: _replace(content, rng, b"NaN"),
    "become a folder": lambda content, rng: content,
    "become a pipe": lambda content, rng: content,
    "become a link to nothing": lambda content, rng: content,
}


VALID: Mapping[str, tuple[str, ...]] = {
    "checkpoints/results.json": ("NaN", "a missing member"),  # a result may be NaN, and a step may have no results
    "evaluations.jsonl": ("no content",),  # nothing was evaluated yet
}
"""File -> damages after which it is still a valid file, with another meaning."""


def damage(path: Path, case: Case) -> None:
    """Damages a file; its time of change stays."""
    found, content = path.stat(), path.read_bytes()
    new = DAMAGES[case.damage](content, random.Random(case.seed))
    path.unlink()
    if case.damage == "become a folder":
        path.mkdir()
    elif case.damage == "become a pipe":
        os.mkfifo(path)
    elif case.damage == "become a link to nothing":
        path.symlink_to("nowhere")
        return
    else:
        path.write_bytes(new)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def run_verb(name: str, run: Path, out: Path) -> Outcome:
    """Runs a verb in this process."""
    verb, printed, messages = VERBS[name], io.StringIO(), io.StringIO()
    words = [word.format(run=run, out=out) for word in verb.words]
    file = out if len(words) < 2 or not words[-1].startswith("--out=") else Path(words[-1].split("=")[1])
    if verb.alone:
        done = runs.convoy(*words)
        code, _, _ = done.returncode, printed.write(done.stdout), messages.write(done.stderr)
    else:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(messages), _time_limit():
            code = convoy(words)
    text = re.sub(r"[\d.]+ s\b", "- s", printed.getvalue()).replace(str(run), "RUN")
    try:
        result = verb.result(run, file, text)
    except (OSError, ValueError):
        result = None
    return Outcome(code, text, messages.getvalue().replace(str(run), "RUN"), result)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"no end within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem(case: Case, found: Outcome, expected: Outcome) -> str:
    """Returns what is wrong with what a verb did; "" if nothing is."""
    said = found.printed + found.messages
    if "Traceback" in said or "traceback is in" in said or "TimeoutError" in said:
        return "a traceback or a hang"
    same = (found.code, found.result) == (expected.code, expected.result)
    if same:
        return ""
    step = _step(case.file)
    of_step = step and re.search(rf"(?:steps? +|checkpoints/|\b){step}\b(?=[ :./,])", said)
    named = Path(case.file).name in said or of_step
    if "lease" in case.file and "unknown process" in said:
        return ""
    return "" if named else f"exit code {found.code}, and no word about the file"


def _step(file: str) -> str:
    found = re.match(r"checkpoints/(\d+)/", file)
    return found[1] if found else ""


@contextlib.contextmanager
def copied(run: Path) -> Iterator[Path]:
    """Yields a copy of a run at one path, which does not change the texts."""
    with tempfile.TemporaryDirectory(prefix="convoy-fuzz-") as folder:
        yield shutil.copytree(run, Path(folder) / "run")


def check(run: Path, case: Case, expected: Mapping[str, Outcome]) -> tuple[str, Outcome]:
    """Runs a case on a copy of the run; returns what is wrong, and what the verb did."""
    with copied(run) as copy:
        damage(copy / case.file, case)
        found = run_verb(case.verb, copy, copy.parent / "out")
    return problem(case, found, expected[case.verb]), found


def undamaged(run: Path, verbs: Mapping[str, Verb] = VERBS) -> dict[str, Outcome]:
    """Returns what each verb does with the undamaged run."""
    found = {}
    for name in verbs:
        with copied(run) as copy:
            found[name] = run_verb(name, copy, copy.parent / "out")
        assert "Traceback" not in found[name].messages, found[name]
    return found


def main() -> int:
    """Runs the cases and prints those that fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="run one case, and print what it does")
    parser.add_argument("--verbs", help="names, with commas")
    args = parser.parse_args()
    os.environ |= runs.COMPILING
    verbs = {name: VERBS[name] for name in args.verbs.split(",")} if args.verbs else VERBS
    failed, begin, done = 0, time.monotonic(), collections.Counter[str]()
    with tempfile.TemporaryDirectory(prefix="convoy-fuzz-run-") as folder:
        run = make_run(Path(folder) / "run")
        chosen = list(enumerate(cases(run, args.cases, args.seed, verbs)))
        if args.case is not None:
            chosen = [chosen[args.case]]
        expected = undamaged(run, {case.verb: verbs[case.verb] for _, case in chosen})
        for number, case in chosen:
            wrong, found = check(run, case, expected)
            done["names the file" if found.result != expected[case.verb].result else "the same result"] += 1
            if wrong or args.case is not None:
                failed += bool(wrong)
                print(f"{number}: {case}: {wrong}\n{_shown(found)}", file=sys.__stdout__, flush=True)
    print(f"{len(chosen)} cases in {time.monotonic() - begin:.0f} s: {failed} failed; {dict(done)}")
    return 1 if failed else 0


def _shown(found: Any) -> str:
    return "\n".join(f"    {line[:300]}" for line in (found.printed + found.messages).splitlines()[-12:])


if __name__ == "__main__":
    sys.exit(main())
