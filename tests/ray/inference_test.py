"""Predictions and evaluations on a real Ray cluster of three nodes on this machine."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

import engine
from engine.api.inference import run_steps
from engine.api.saved_evaluations import SavedEvaluations
from engine.base.errors import ConfigError
from engine.cli.main import main
from engine.datasets.pool import LocalPool
from engine.ray.connection import connect
from engine.ray.inference import Part, RayEvaluations, RayPredictions, split
from engine.ray.pool import RayPool
from tests import runs
from tests.ray.clusters import cluster

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.filterwarnings("ignore:.*fork"),  # of JAX, if another test has imported it
]

GATED = "--data.target=tests.ray.gated.Gated"


@pytest.fixture(scope="module")
def nodes():
    """The address of a cluster of three nodes, two of which have a CPU."""
    with cluster(num_cpus=0) as found:
        found.add_node(num_cpus=1)
        found.add_node(num_cpus=1)
        ray = connect(found.address)
        yield found.address
        ray.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with an evaluation whose last batch is padded."""
    path = tmp_path_factory.mktemp("inference") / "run"
    heldout = dict(data=dict(target="tests.predicting.Unreadable"), batch_size=8, every="4 steps")
    settings = dict(train__total="4 steps", checkpoint__every="2 steps", evaluations__heldout=heldout)
    ranked = dict(slices=dict(one=dict(target="tests.ray.gated.is_one")), worst=3, score="accuracy", per_example=True)
    settings |= dict(evaluations__sliced=heldout | ranked)
    engine.train(runs.config(**settings, task__target="tests.predicting.Predict"), workdir=path)
    return path


def wait_until(condition):
    end = time.monotonic() + runs.limit(120)
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def test_parts_are_batches_in_order_and_do_not_depend_on_the_workers():
    assert split(3) == [Part(0, 1), Part(1, 2), Part(2, 3)]
    assert [split(batches)[0].stop for batches in (1, 511, 512, 10**4, 10**6)] == [1, 1, 2, 16, 16]
    for batches in (1, 513, 1000):
        parts = split(batches)
        assert [n for part in parts for n in range(part.start, part.stop)] == list(range(batches))


def test_killed_prediction_continues_to_the_bytes_of_one_process(nodes, run, tmp_path, capsys):
    gate, out = tmp_path / "gate", tmp_path / "out.npz"
    gate.mkdir()
    data = [GATED, f"--data.gate={gate}", "--data.wait_from=20", "--batch-size=8"]
    words = ["predict", str(run), *data, f"--out={out}", "--on=ray", f"--address={nodes}"]
    process = runs.start(*words)
    try:
        wait_until(lambda: process.poll() or len(list((tmp_path / ".out.npz.parts").glob("00*"))) == 2)
    finally:
        process.kill()
        output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    (gate / "open").touch()
    wait_until(lambda: connect().available_resources().get("CPU") == 2)  # the workers of the killed command have ended
    assert main([*words, "--processes=1"]) == 0
    texts = capsys.readouterr()
    assert texts.out.splitlines()[-1] == f"wrote predictions of 37 examples to {out}"
    assert "2 of 5 parts were finished before" in texts.err and not list(tmp_path.glob(".*"))
    plain = tmp_path / "plain.npz"
    assert main(["predict", str(run), *data, f"--out={plain}"]) == 0
    assert out.read_bytes() == plain.read_bytes()


def test_parts_become_the_arrays_of_one_process(run):
    found = engine.predict(run, evaluation="heldout", compute=RayPredictions(LocalPool(1)))
    expected = engine.predict(run, evaluation="heldout")
    assert set(found) == set(expected) and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_evaluation_is_bitwise_that_of_one_process_and_stored_alike(nodes, run, tmp_path, capsys):
    copies = {}
    for workers in (0, 2):
        copy = tmp_path / str(workers)
        shutil.copytree(run, copy)
        (copy / "evaluations.jsonl").unlink(missing_ok=True)
        words = ["evaluate", str(copy), "--step=all"]
        words += [f"--processes={workers}", "--on=ray", f"--address={nodes}"] if workers else []
        assert main(words) == 0
        lines = [json.loads(line) for line in (copy / "evaluations.jsonl").read_text().splitlines()]
        copies[workers] = capsys.readouterr().out, [{**line, "time": ""} for line in lines]
    assert [(line["step"], line["evaluation"]) for line in copies[0][1]] == [
        (step, name) for step in (2, 4) for name in ("heldout", "sliced")
    ]
    assert copies[2] == copies[0]


def test_batches_that_need_each_other_are_refused_by_name(tmp_path, run):
    data = dict(target="tests.row_state.source", seed=9, n=48)
    settings = dict(train__total="2 steps", data__target="tests.row_state.source", data__shuffle=False)
    settings |= dict(evaluations__heldout=dict(data=data))
    engine.train(runs.config(**settings, task__target="tests.row_state.Continue"), workdir=tmp_path / "run")
    for function in (predict, evaluate):
        text = (
            rf"--on=ray: Continue.{function.__name__} carries carry from batch to batch, so the batches cannot be split"
        )
        with pytest.raises(ConfigError, match=text):
            function(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"--on=ray: evaluations.sliced.tags are read from the batches, in order, so"):
        evaluate(run, ["evaluations.sliced.tags.id=id"])


def predict(run):
    engine.predict(run, compute=RayPredictions(RayPool()))


def evaluate(run, overrides=()):
    run_steps(SavedEvaluations(run, overrides=overrides), "latest", lambda results: None, RayEvaluations(RayPool()))
