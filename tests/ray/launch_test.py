"""`convoy launch ray` on a real cluster of three nodes on this machine. Each process runs on a node of its own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.base.errors import ConfigError
from engine.launch.supervise import supervise
from engine.ray.connection import connect
from engine.ray.launch import RayAttempts, launch, passed_on
from engine.ray.placement import NodesMissing, RayJob
from engine.run.directory import RunDirectory
from tests import runs
from tests.launch.programs import alive, wait_until_gone
from tests.ray import gate
from tests.ray.clusters import Nodes, cluster

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*fork"),  # of JAX, if another test has imported it
]

STEPS, HELD = 40, 25  # the step at which a run waits for the loss of a node
TRAIN = (
    *("train", "--config=configs.digits", f"--config.train.total={STEPS} steps", "--config.checkpoint.every=10 steps"),
    *("--config.log.every=1 step", "--config.evaluations.heldout.every=20 steps", "--config.log.tensorboard=False"),
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster(num_cpus=0) as found:
        nodes = Nodes(found)
        nodes.add(2)
        yield nodes
        connect(found.address).shutdown()


@pytest.fixture
def job(nodes: Nodes) -> RayJob:
    nodes.add(2)
    return RayJob(2, resources={"slot": 1}, spread=True, address=nodes.address, wait_for_nodes_s=3)


def start(nodes: Nodes, *words: str) -> runs.Started:
    """Starts `convoy launch ray` for two processes, with one device each."""
    flags = ("--processes=2", "--spread", "--resource=slot=1", f"--address={nodes.address}", "--wait-for-nodes=60")
    return runs.start("launch", "ray", *flags, *words, cwd=None, **runs.COMPILING)


def ended(process: runs.Started) -> tuple[int, str]:
    """Returns the exit code and the output."""
    text = process.communicate(timeout=300)[0]
    return process.wait(), text


def program(text: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys, time\nme = os.environ['CONVOY_PROCESS_ID']\n{text}"]


def digests(run: Path) -> dict[str, str]:
    """Returns the digest of each array of the last step: weights, state of the optimizer."""
    return json.loads((run / "checkpoints" / str(STEPS) / "manifest.json").read_text())["arrays"]


def test_killed_node_is_replaced_and_the_run_has_the_bits_and_the_output_of_other_launchers(nodes, tmp_path):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    nodes.add(2)
    process = start(nodes, "--", *TRAIN, *gate.flags(tmp_path, HELD), f"--workdir={run}")
    runs.wait_for((run / "checkpoints/10/manifest.json").exists, process)
    node = nodes.kill()
    nodes.add(2)
    runs.wait_for(lambda: runs.status(run)["attempt"] == 2, process)
    (tmp_path / str(HELD)).touch()
    code, text = ended(process)
    assert code == 0, text
    # JAX ends the other process with 134 if it notices the loss before Ray does.
    lost = rf"convoy launch: process (0|1) ended first, with 42 .*\n\[\1\] node .*Ray's id {node}"
    assert re.search(rf"{lost}|convoy launch: process [01] ended first, with 134 ", text), text
    assert re.search(r"convoy supervise: ended at step \d+ with \d+ .* Restart 1 in 1 s, from step \d+\.", text), text
    assert "[1] processes: 1 of 2, coordinator " in text and "(flags and CONVOY_*: CONVOY_COORDINATOR" in text
    assert f"[0] digits: done at step {STEPS}/{STEPS}" in text
    assert (runs.status(run)["attempt"], runs.status(run)["state"]) == (2, "done")
    words = ("launch", "local", "--processes=2", "--devices-per-process=1", "--", *TRAIN, f"--workdir={unbroken}")
    done = runs.convoy(*words, cwd=None, **runs.COMPILING)
    assert done.returncode == 0, done.stderr
    assert runs.rows(run) == runs.rows(unbroken) and sorted(runs.rows(run)) == list(range(1, STEPS + 1))
    assert runs.rows(run, "heldout/loss") == runs.rows(unbroken, "heldout/loss")
    assert digests(run) == digests(unbroken) and len(digests(run)) > 10


def test_error_of_the_user_is_told_once_and_not_restarted(nodes, tmp_path):
    code, text = ended(start(nodes, "--", *TRAIN, "--config.data.split=tomorrow", f"--workdir={tmp_path / 'run'}"))
    assert code == 1 and "Restart" not in text and "convoy launch: process " in text
    assert text.count("tomorrow") == 1, text


@contextlib.contextmanager
def when(condition: Callable[[], object], act: Callable[[], object]) -> Iterator[None]:
    """Calls `act` in a thread once the condition holds."""

    def run() -> None:
        end = time.monotonic() + 180
        while not condition() and time.monotonic() < end:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def waiting(folder: Path) -> list[str]:
    """A program that states its pid in a folder, and waits."""
    return program(f"open(f'{folder}/{{os.getpid()}}', 'w').close(); time.sleep(3600)")


def test_node_that_is_lost_for_good_ends_the_job_with_its_name_in_time(nodes, job, tmp_path, capsys):
    killed: dict[str, Any] = {}

    def kill() -> None:
        killed.update(pids=pids(tmp_path), time=time.monotonic(), node=nodes.kill())

    with when(lambda: len(pids(tmp_path)) == 2, kill), pytest.raises(NodesMissing) as raised:
        supervise(waiting(tmp_path), RunDirectory(tmp_path / "run"), run_attempt=RayAttempts(job).run, processes=2)
    assert time.monotonic() - killed["time"] < runs.limit(60)
    text = str(raised.value)
    assert f"Ray's id {killed['node']}), which r" in text and "No other node took its place within 3 s" in text
    assert "the job needs 2 x CPU: 1, slot: 1, each on a node of its own" in text and "room for 1" in text
    assert raised.value.exit_code == 42
    wait_until_gone(killed["pids"])  # those of the killed node too
    assert "Restart 1 in 1 s, from the beginning." in capsys.readouterr().err


def test_node_that_stops_answering_is_lost_too(nodes, job, tmp_path, monkeypatch, capsys):
    """As after a loss of power: no connection is closed. Ray itself would wait."""
    monkeypatch.setattr("engine.ray.launch.SILENT_S", 4.0)
    parents: list[int] = []

    def stop() -> None:
        child = pids(tmp_path)[0]
        parents.append(int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1]))
        os.kill(parents[0], signal.SIGSTOP)  # the worker of Ray

    try:
        with when(lambda: len(pids(tmp_path)) == 2, stop):
            assert launch(waiting(tmp_path), job) == 42
        text = capsys.readouterr().err
        assert re.search(
            r"convoy launch: process (0|1) ended first, with 42 \(start it again\); then [01]: 137\n", text
        )
        assert re.search(r"\[(0|1)\] node .*, which runs process \1, has not answered for \d+ s\.", text), text
    finally:
        os.kill(parents[0], signal.SIGCONT)
    wait_until_gone(pids(tmp_path))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_signals_reach_the_processes(job, tmp_path, number, code):
    text = f"""
def stop(number, frame):
    os._exit({code})
signal.signal({int(number)}, stop)
open(f'{tmp_path}/{{os.getpid()}}', 'w').close()
time.sleep(3600)
"""
    with when(lambda: len(pids(tmp_path)) == 2, lambda: os.kill(os.getpid(), number)):
        assert launch(program(text), job) == code


def test_first_failure_decides_and_the_output_keeps_its_order(job, capsys, monkeypatch):
    monkeypatch.setenv("CONVOY_MINE", "passed on")
    monkeypatch.setenv("OTHER", "not passed on")
    text = """
for i in range(200):
    print(i, os.environ.get("CONVOY_MINE"), os.environ.get("OTHER"), os.getcwd(), flush=True)
if me == "1":
    print("the reason", file=sys.stderr)
    sys.exit(43)
time.sleep(3600)
"""
    assert launch(program(text), job) == 43
    found = capsys.readouterr()
    for i in (0, 1):
        lines = [line for line in found.out.splitlines() if line.startswith(f"[{i}] ")]
        assert lines == [f"[{i}] {n} passed on None {os.getcwd()}" for n in range(200)]
    assert found.err.splitlines() == [
        "[1] the reason", "convoy launch: process 1 ended first, with 43 (do not retry); then 0: 137",
    ]  # fmt: skip


def test_killed_driver_leaves_no_process(nodes, tmp_path):
    nodes.add(2)
    launcher = f"""
from engine.ray.launch import launch
from engine.ray.placement import RayJob
launch({waiting(tmp_path)!r}, RayJob(2, resources={{"slot": 1}}, address={nodes.address!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    runs.wait_for(lambda: len(pids(tmp_path)) == 2, process)
    assert all(map(alive, pids(tmp_path)))
    process.kill()
    process.communicate()
    wait_until_gone(pids(tmp_path))


def test_cluster_that_is_too_small_is_one_sentence(job):
    with pytest.raises(ConfigError) as raised:
        launch(program(""), RayJob(2, gpus=8, address=job.address, wait_for_nodes_s=0.5))
    assert str(raised.value).startswith(
        "the job needs 2 x CPU: 1, GPU: 8, and the 3 nodes of the cluster have room for 0"
    )


def test_variables_of_the_engine_and_of_jax_are_passed_on(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"relative{os.pathsep}/absolute")
    monkeypatch.setenv("XLA_FLAGS", "--a")
    found = passed_on()
    assert found["PYTHONPATH"] == f"{os.getcwd()}/relative{os.pathsep}/absolute" and found["XLA_FLAGS"] == "--a"
    assert "PATH" not in found and json.dumps(found)
