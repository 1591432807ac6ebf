"""Whole runs on streams: killed and resumed with other process counts, iterables, evaluations and their errors."""

import collections
import json
import os
import signal
import time
from pathlib import Path

import pytest

import engine
from engine.api.prepared import prepare
from engine.base.errors import ConfigError
from engine.config.text import to_text
from engine.data.adapt import descriptions
from engine.run import ledger
from engine.run.directory import RunDirectory
from tests import runs, zoo


class Shards:
    """A stream of examples for tests/zoo.py; each opening adds a line (shard, position) to the file `log`."""

    def __init__(self, shards: int = 6, items: int = 37, log: str = ""):
        self.shards, self._items, self._log = shards, items, log

    def counts(self):
        return [self._items] * self.shards

    def open(self, shard, position):
        if self._log:
            with open(self._log, "a") as file:
                file.write(f"{json.dumps([shard, position])}\n")
        yield from ((shard * self._items + item, item + 1) for item in range(position or 0, self._items))

    def decode(self, item):
        return zoo.source(self.shards * self._items)[item]


class Kill:
    """A hook that kills its process at step 38, once the save of step 35 is complete."""

    def __init__(self, run: str):
        self._run = Path(run)

    def run(self, trainer, state, step):
        if step == 38:
            end = time.monotonic() + 120
            while "35" not in runs.saved_steps(self._run):
                assert time.monotonic() < end
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


def write(folder: Path, log: Path, hooks=None) -> str:
    folder.mkdir()
    config = runs.config(
        data={"target": "tests.stream_runs_test.Shards", "log": str(log), "shuffle_window": 24},
        mesh__fsdp=2, train__total="45 steps", hooks=hooks or {}, log__examples=True, evaluations={},
    )  # fmt: skip
    RunDirectory(folder).write_config_text(to_text(config))
    return f"--config={folder}"


@pytest.mark.multiprocess
@pytest.mark.slow
def test_stream_killed_in_one_process_resumes_in_two_with_the_same_losses(tmp_path):
    kill = {"kill": {"target": "tests.stream_runs_test.Kill", "every": "1 step", "run": str(tmp_path / "run")}}
    config = write(tmp_path / "config", tmp_path / "log")
    killed = write(tmp_path / "killed", tmp_path / "log", kill)
    done = runs.convoy("train", config, f"--workdir={tmp_path / 'whole'}", JAX_NUM_CPU_DEVICES="2")
    assert done.returncode == 0, done.stderr
    assert "data: tests.stream_runs_test.Shards is a stream of 222 examples; 6 shards; each" in done.stderr
    done = runs.convoy("train", killed, f"--workdir={tmp_path / 'run'}", JAX_NUM_CPU_DEVICES="2")
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    (tmp_path / "log").unlink()
    words = ("launch", "local", "--processes=2", "--devices-per-process=1", "--", "train", config)
    done = runs.convoy(*words, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert runs.rows(tmp_path / "run") == runs.rows(tmp_path / "whole")
    assert ledger.read(tmp_path / "run/examples") == ledger.read(tmp_path / "whole/examples")
    opened = collections.defaultdict(list)
    for line in (tmp_path / "log").read_text().splitlines():
        shard, position = json.loads(line)
        opened[shard].append(position)
    assert all(any(positions) for positions in opened.values()) and len(opened) == 6


def examples():
    yield from (zoo.source(64)[index] for index in range(64))


class Iterable:
    def __iter__(self):
        return examples()


def test_iterable_trains_and_evaluates_as_the_same_data_in_memory(tmp_path):
    config = runs.config(train__total="6 steps", data__shuffle=False)
    engine.train(config, data=zoo.source(64), evaluation_data={"heldout": zoo.source(64)}, workdir=tmp_path / "memory")
    data = {"data": Iterable(), "evaluation_data": {"heldout": examples}}
    engine.train(config, **data, workdir=tmp_path / "iterable")
    output = (tmp_path / "iterable/log.txt").read_text()
    for name in ("loss", "heldout/loss"):
        assert runs.rows(tmp_path / "iterable", name) == runs.rows(tmp_path / "memory", name)
    assert output.count("data: tests.stream_runs_test.Iterable can only be iterated, so it is read as a stream of") == 1
    assert output.count("evaluations.heldout.data: tests.stream_runs_test.examples can only be iterated") == 1
    assert "of 64 examples; 1 shard" in output and "of unknown length; 1 shard" in output
    again = engine.evaluate(tmp_path / "iterable", evaluation_data={"heldout": Iterable()})
    assert again["heldout/loss"] == pytest.approx(runs.rows(tmp_path / "memory", "heldout/loss")[6], abs=1e-6)


def test_generator_function_by_dotted_path_is_read_as_a_stream(tmp_path):
    config = runs.config(train__total="2 steps", data={"target": "tests.stream_runs_test.examples"})
    summary = engine.train(config, workdir=tmp_path / "run", fast_dev_run=True)
    assert summary.step == 2
    source = prepare(config).source
    assert descriptions({"data": source})[0].startswith("data: tests.stream_runs_test.examples can only be iterated")


def test_stream_of_unknown_length_has_no_epochs():
    for changed in ({"train__total": "2 epochs"}, {"evaluations__heldout__every": "1 epoch"}):
        with pytest.raises(ConfigError, match=r"'\d epochs?', but the training data is a stream of unknown length"):
            engine.train(runs.config(**changed), data=Iterable())
