"""Programs that were compiled before the start of a run: in the compilation cache, and in a folder."""

import json
import subprocess
import sys
import textwrap

import pytest

import engine
from engine.api.compile import precompile
from engine.base.errors import ConfigError
from engine.cli.main import main
from engine.config import to_text
from tests import runs

SETTINGS = dict(train__total="5 steps", train__steps_per_dispatch=2, train__ema_decay=0.5)
LARGE = ("jit(call)", "jit(steps)", "jit(step)")  # first state, steps, evaluations
START = """
    import json
    import sys
    import threading
    import jax
    import engine
    missed = []
    def listen(event, **more):
        if event == "/jax/compilation_cache/cache_misses":
            missed.append(threading.current_thread().name)
    jax.monitoring.register_event_listener(listen)
    engine.train(sys.argv[1], workdir=sys.argv[2])
    print(json.dumps(missed))
"""


def test_start_after_convoy_compile_compiles_nothing(tmp_path):
    engine.train(runs.config(train__total="1 step", evaluations={}), workdir=tmp_path / "first")
    more = dict(init__checkpoint=str(tmp_path / "first"), evaluations__heldout__figures=2)
    config = runs.config(**SETTINGS, **more, task={"target": "tests.drawing.Draw"}, cache__compiled=True)
    (tmp_path / "config.txt").write_text(to_text(config))
    done = runs.convoy("compile", f"--config={tmp_path}", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    names = [line.partition(":")[0] for line in done.stdout.splitlines()[:-1]]
    warm = ["first state", "optimizer state of init.checkpoint"]
    assert names == [*warm, "step", "2 steps", "evaluation heldout"]
    assert [f"compiling: {name}" for name in names] == done.stderr.splitlines()
    assert done.stdout.splitlines()[-1].startswith("The programs are in the compilation cache")
    words = [sys.executable, "-c", textwrap.dedent(START), str(tmp_path), str(tmp_path / "run")]
    environment = runs.environment(XDG_CACHE_HOME=str(tmp_path))
    started = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert started.returncode == 0, started.stderr
    # The thread of a save also reads it back, on other devices.
    assert not {"MainThread", "compile-evaluations"} & set(json.loads(started.stdout.splitlines()[-1]))
    assert len(list(tmp_path.glob("run/figures/heldout/*/*.png"))) == 4


def test_run_loads_its_programs_from_a_folder_and_computes_the_same(tmp_path):
    folder = tmp_path / "programs"
    settings = SETTINGS | dict(mesh__data=2, mesh__fsdp=4)
    found = [each.name for each in precompile(runs.config(**settings), out=folder)]
    assert found == ["first state", "step", "2 steps", "evaluation heldout"]
    assert folder.stat().st_mode & 0o077 == 0
    results = []
    for path, programs in (("with", str(folder)), ("without", None)):
        with runs.compilations() as compiled:
            engine.train(runs.config(**settings, cache__programs=programs), workdir=tmp_path / path)
        large = [name for name, _ in compiled if name in LARGE]
        assert len(large) == (0 if programs else 4), compiled
        results.append([runs.rows(tmp_path / path), runs.rows(tmp_path / path, "heldout/loss")])
    assert results[0] == results[1] and len(results[0][0]) == 5


TWO = """
import json
import sys
from pathlib import Path
import os
from engine.cluster import cluster_detection, group, processes
processes.initialize(cluster_detection.detect({}, os.environ).process)
import engine
from engine.api.compile import precompile
from tests import ragged_runs_test, runs
from tests.api import compile_test
folder, run = sys.argv[1:]
evaluation = dict(data=ragged_runs_test.BUCKETED, batch_size=8)
settings = dict(
    train__total="6 steps", train__steps_per_dispatch=2, mesh__data=2, evaluations=dict(heldout=evaluation)
)
config = ragged_runs_test.config(ragged_runs_test.BUCKETED, **settings)
found = [each.name for each in precompile(config, out=Path(folder))]
group.barrier("the folder is written", 300)
with runs.compilations() as compiled:
    engine.train(
        ragged_runs_test.config(ragged_runs_test.BUCKETED, **settings, cache__programs=folder), workdir=run
    )
print(json.dumps([found, [name for name, _ in compiled if name in compile_test.LARGE]]))
processes.leave()
"""


@pytest.mark.multiprocess
def test_two_processes_load_their_programs_for_several_lengths_and_steps(tmp_path):
    lines = runs.lines_by_process(TWO, tmp_path / "programs", tmp_path / "run", processes=2)
    for process in ("0", "1"):
        names, compiled = json.loads(lines[process][-1])
        assert names == ["first state", "step", "2 steps", "evaluation heldout"] and compiled == []
    assert "warning" not in (tmp_path / "run/log.txt").read_text()
    assert len(list((tmp_path / "programs").glob("*.program"))) == 1 + 2 * 3  # both lengths of the others
    assert len(runs.rows(tmp_path / "run")) == 6 and len(runs.rows(tmp_path / "run", "heldout/loss")) == 1


def test_hardware_needs_a_folder(capsys):
    assert main(["compile", "--config=configs.digits", "--hardware=v5e:4x4"]) == 1
    assert "--hardware=v5e:4x4: where are the programs to be written? Add --out=DIR" in capsys.readouterr().err


def test_folder_that_cannot_be_written_is_reported_before_anything_is_compiled(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    with pytest.raises(ConfigError, match=r"^--out=.*/file: cannot be written \(File exists\). Choose another"):
        next(precompile(runs.config(), out=tmp_path / "file", say=said.append))
    assert not said


def test_without_cache_and_folder_nothing_is_compiled():
    with pytest.raises(ConfigError, match=r"cache.compiled = False: nothing would keep the compiled programs"):
        next(precompile(runs.config()))
