"""Evaluations are exact with partial batches, on any mesh, for metrics per row and for sums."""

import dataclasses
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import engine
from engine import ArraySource, Balanced, Mean, Mixture, Packed, metrics
from engine.base import json_text
from engine.base.errors import ConfigError, ShardingError, TaskError
from engine.cli.main import main
from engine.config.schema import Data, MeshSpec, Target
from engine.config.schema import Evaluation as Config
from engine.experiments import resampling
from engine.loop.evaluation import Evaluator, build_evaluations, check_watched
from engine.loop.preemption import Preemption
from engine.metrics.example_file import read_parquet
from engine.metrics.results import json_values, scalars
from tests import runs, zoo
from tests.measuring import SLICED, Measure
from tests.predicting import NAMES, SIZES, Ragged, Unreadable, bucketed

N = 37  # not a multiple of any batch size here


class Sums(zoo.Classify):
    """The same metrics, summed by the author."""

    def evaluate(self, model, batch):
        means: Mapping[str, Any] = super().evaluate(model, batch)
        return {name: Mean(m.total.sum(), m.weight.sum()) for name, m in means.items()}


def evaluation(program, batch_size=16, **config):
    return Evaluator("heldout", Config(**config), zoo.source(N, seed=5), program.evaluation, batch_size)


def expected(program, state):
    """Loss and accuracy, computed over all examples at once."""
    data = zoo.examples(N, seed=5)
    params = jax.device_get(state.params)
    module = program.spec.model.module(params, jax.device_get(state.model_state), None)
    module.eval()
    logits = module(data["x"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data["y"])
    correct = np.asarray(logits).argmax(-1) == data["y"]
    return {
        "heldout/loss": np.average(losses, weights=data["valid"]),
        "heldout/accuracy": np.average(correct, weights=data["valid"]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("task", [zoo.Classify("cnn"), Sums("cnn")], ids=["by-row", "sums"])
@pytest.mark.parametrize("mesh", [None, MeshSpec(data=2, fsdp=4)], ids=["one-device", "eight-devices"])
def test_each_example_counts_once_for_any_batch_size(task, mesh):
    program = zoo.program(task, mesh=mesh)
    state, _ = zoo.run(program, zoo.batches(2))
    assert evaluation(program).run(state) == pytest.approx(expected(program, state), rel=1e-5)


@pytest.mark.slow
def test_collected_and_counted_metrics_are_equal_bits_on_any_mesh_with_any_batch_size(monkeypatch):
    results = []
    for mesh, batch_size in ((None, 37), (None, 10), (MeshSpec(data=2, fsdp=4), 16)):
        program = zoo.program(Measure(), mesh=mesh)
        found = evaluation(program, batch_size).run(program.init())
        assert found is not None
        results.append(json_values(found))
    assert results[0] == results[1] == results[2]
    data = zoo.examples(N, seed=5)
    assert results[0]["heldout/found/scores"] == sorted(data["x"][:, 0].tolist())
    assert results[0]["heldout/found/counts"] == data["y"].sum()
    assert results[0]["heldout/error/p50"] == pytest.approx(np.quantile(data["x"][data["valid"] > 0], 0.5), rel=1e-6)
    assert 0 < results[0]["heldout/ap"] < 1


def test_best_may_be_any_number_of_a_metric():
    program = zoo.program(Measure())
    subject = evaluation(program)
    for name in ("heldout/ap", "heldout/ap/0.5", "heldout/ap/0-1", "heldout/confusion/iou/b", "heldout/error/p99"):
        check_watched({name: "checkpoint.best"}, [subject], [])
    for name in ("heldout/ap/0.7", "heldout/confusion", "heldout/roc/curve", "heldout/found/image", "other/ap"):
        with pytest.raises(ConfigError, match="no evaluation has this metric"):
            check_watched({name: "checkpoint.best"}, [subject], [])
    assert not subject.is_known({"heldout/ap": 0.5})
    assert subject.is_known(scalars(subject.run(program.init()) or {}))


@pytest.mark.slow
def test_slices_are_evaluations_of_their_examples_on_any_mesh_with_any_batch_size(tmp_path):
    slices = {"id": Target(target="tests.measuring.by_id"), **SLICED.slices}
    config, bad = dataclasses.replace(SLICED, slices=slices, data=Data(on_error="skip"), per_example=True), (4, 36)
    results, files = [], []
    for mesh, batch_size in ((None, 37), (None, 10), (MeshSpec(data=2, fsdp=4), 16)):
        program = zoo.program(Measure(), mesh=mesh)
        subject = Evaluator("heldout", config, Unreadable(bad), program.evaluation, batch_size)
        found = subject.run(program.init())
        assert found is not None
        files.append(found["heldout/per_example"])
        results.append(json_values(found))
    assert files[0].path == "per_example/heldout/0.parquet"
    assert files[0].content == files[1].content == files[2].content
    assert json_text.dumps(results[0]) == json_text.dumps(results[1]) == json_text.dumps(results[2])
    data, kept = zoo.examples(N, seed=5), [i for i in range(N) if i not in bad]
    members = {
        "high": [i for i in kept if data["x"][i].mean() > 0.1],
        **{f"class/{name}": [i for i in kept if data["y"][i] == y] for name, y in (("one", 1), ("two", 2))},
        "odd": [i for i in kept if data["y"][i] % 2],
        "id/short": [i for i in kept if len(NAMES[i]) < 9],
        "id/zero": [i for i in kept if i % 10 == 0],
    }
    program = zoo.program(Measure())
    for name, chosen in members.items():
        alone = ArraySource({key: rows[chosen] for key, rows in data.items()})
        whole = Evaluator("alone", Config(), alone, program.evaluation, 8).run(program.init())
        assert whole is not None
        expected = {key.replace("alone/", f"heldout/{name}/"): value for key, value in json_values(whole).items()}
        assert json_text.dumps({key: results[0][key] for key in expected}) == json_text.dumps(expected)
        assert results[0][f"heldout/{name}/examples"] == len(chosen)
    scores = {i: np.quantile(data["x"][i], 0.9) for i in kept if data["valid"][i]}
    worst = sorted(scores, key=lambda i: -scores[i])[:5]
    assert results[0]["heldout/worst_examples"]["example"] == worst
    assert results[0]["heldout/worst_examples"]["id"] == [NAMES[i] for i in worst]
    assert_states_give(files[0].content, results[0], tmp_path / "0.parquet")
    ranked = results[0]["heldout/worst_slices"]
    assert sorted(ranked["slice"]) == sorted(members)  # the empty slice has no score
    assert ranked["error/p90"] == sorted(ranked["error/p90"], reverse=True)


class Mixing(Measure):
    """Its last batch has its real size."""

    mixes_rows = True


@pytest.mark.slow
def test_last_batch_of_real_size_belongs_to_slices_on_the_host():
    program, by_id = zoo.program(Mixing(), mesh=MeshSpec(data=8)), {"id": Target(target="tests.measuring.by_id")}
    found = Evaluator("heldout", Config(slices=by_id), Unreadable(), program.evaluation, 16).run(program.init())
    assert found is not None
    short = [i for i, name in enumerate(NAMES) if len(name) < 9]
    assert short[-1] == 35 and found["heldout/id/short/examples"] == len(short)
    assert len(json_values(found)["heldout/found/scores"]) == N


def assert_states_give(content: bytes, wanted: Mapping[str, Any], path: Path) -> None:
    """Asserts that the stored states of single examples merge to the results of all examples and of each slice."""
    path.write_bytes(content)
    stored = read_parquet(path)
    for part, members in {"": np.ones(len(stored.indices), bool), **stored.slices}.items():
        for name, metric in stored.metrics.items():
            full = f"heldout/{part}/{name}".replace("//", "/")
            found = resampling.results(full, metric, members.astype(np.int64))
            assert found == {key: pytest.approx(wanted[key], rel=1e-12, nan_ok=True) for key in found}
            assert found


def test_bucketed_examples_are_sliced_and_named_by_their_index_with_one_program_per_length():
    traced = []

    class Points(zoo.Classify):
        def evaluate(self, model, batch):
            traced.append(batch["points"].shape)
            return {"points": metrics.Sum.of(batch["points"] * batch["mask"])}

    program = zoo.program(Points())
    subject = Evaluator(
        "heldout",
        Config(slices=SLICED.slices, worst=4, score="points", worst_mode="min"),
        bucketed(),
        program.evaluation,
        8,
    )
    traced.clear()
    state = program.init()
    assert subject.run(state) is not None
    found = subject.run(state)
    assert sorted(traced) == [(8, 2), (8, 8)]
    assert found is not None
    assert json_values(found)["heldout/worst_examples"]["example"] == sorted(range(N), key=lambda i: i * SIZES[i])[:4]
    high = [i for i, x in enumerate(zoo.examples(N, seed=5)["x"]) if x.mean() > 0.1]
    assert found["heldout/high/points"] == sum(i * SIZES[i] for i in high)


def test_packed_rows_have_no_slices():
    packed = Packed(Ragged(), 8, fields=["points"], split=False)
    source = Mixture({"a": Balanced(packed, 1)}, {"a": 1})
    for field, config in (("slices", Config(slices=SLICED.slices)), ("worst", Config(worst=1))):
        with pytest.raises(TaskError, match=rf"^evaluations.heldout.{field}: a row of .*Mixture holds several packed"):
            Evaluator("heldout", config, source, zoo.program(zoo.Classify()).evaluation, 8)


def test_number_of_a_slice_may_select_the_best_and_its_name_must_be_free():
    program = zoo.program(Measure())
    subject = Evaluator("heldout", SLICED, zoo.source(N, seed=5), program.evaluation, 16)
    check_watched({"heldout/class/one/error/p50": "checkpoint.best"}, [subject], [])

    class Clash(zoo.Classify):
        def evaluate(self, model, batch):
            return {"high/examples": Mean.of(batch["x"])}

    with pytest.raises(TaskError, match=r"heldout.slices: a slice and a metric, or two .* give 'high/examples'. Rena"):
        evaluation(zoo.program(Clash()), slices={"high": SLICED.slices["high"]})


def test_worst_examples_follow_the_direction_of_their_score():
    program = zoo.program(zoo.Classify())
    subject = evaluation(program, worst=3, score="accuracy")
    table: Any = (subject.run(program.init()) or {})["heldout/worst_examples"]
    assert table.title == "smallest accuracy first" and table.columns["accuracy"] == [0, 0, 0]
    assert subject.warnings == []
    assert evaluation(program, worst=3)._states.order_text == "largest loss first"
    assert evaluation(program, worst=3, worst_mode="min")._states.order_text == "smallest loss first"


def test_score_of_unknown_direction_is_a_warning():
    class Length(zoo.Classify):
        def evaluate(self, model, batch):
            return {"length": Mean.of(batch["x"])}

    [text] = evaluation(zoo.program(Length()), worst=3, score="length").warnings
    assert text.startswith("evaluations.heldout.worst_mode: it is not known whether a large or a small length is bad")
    assert evaluation(zoo.program(Length()), worst=3, score="length", worst_mode="max").warnings == []


@pytest.mark.parametrize("score", ["confusion", "confusion/accurac", "found/image"])
def test_score_that_is_no_number_of_its_metric_is_an_error(score):
    text = rf"^evaluations.heldout.score = '{score}': '\w+' gives no number of this name\..* Numbers of it: "
    with pytest.raises(TaskError, match=text):
        evaluation(zoo.program(Measure()), worst=1, score=score)


def test_names_that_need_examples_are_accepted_by_their_metric():
    subject = evaluation(zoo.program(Firsts()))
    assert subject.gives("heldout/x/first")
    assert not subject.gives("heldout/y")
    assert subject.is_known({"heldout/x/first": 1.0})


class First(metrics.Metric):
    """A metric that needs an example, so that its names are not known before a run."""

    values: jax.Array = metrics.collected()

    def compute(self):
        return {"first": self.values[0]}


class Firsts(zoo.Classify):
    def evaluate(self, model, batch):
        return {"x": First(batch["y"]), "loss": None}


def test_name_that_needs_examples_is_checked_in_the_run(tmp_path):
    task = {"target": "tests.loop.evaluation_test.Firsts"}
    text = (
        r"checkpoint.best = 'heldout/x/fist': the evaluation heldout has not returned this metric. "
        r"Did you mean heldout/x/first\? It returned: heldout/x/first\."
    )
    with pytest.raises(TaskError, match=text):
        engine.train(runs.config(task=task, checkpoint__best="heldout/x/fist"), workdir=tmp_path)


def test_two_metrics_of_one_name_are_an_error():
    class Twice(zoo.Classify):
        def evaluate(self, model, batch):
            return {"x": metrics.Quantiles.of(batch["x"]), "x/p50": Mean.of(batch["x"])}

    program = zoo.program(Twice())
    with pytest.raises(TaskError, match=r"evaluations.heldout: two metrics give 'heldout/x/p50'. Rename one"):
        evaluation(program).run(program.init())


@pytest.mark.slow
def test_results_of_a_run_are_logged_and_select_the_best_checkpoint(tmp_path, capsys):
    config = runs.config(
        task={"target": "tests.measuring.Measure"},
        checkpoint__best="heldout/error/p50",
        log__tensorboard=True,
        evaluations__heldout__worst=2,
        evaluations__heldout__score="error/p50",
    )
    summary = engine.train(config, workdir=tmp_path)
    (value,) = set(runs.rows(tmp_path, "heldout/error/p50").values())
    assert summary.best == {"heldout/error/p50": (4, value)}
    assert summary.metrics["heldout/ap/0-1"] == runs.rows(tmp_path, "heldout/ap/0-1")[10]
    assert len(runs.rows(tmp_path, "heldout/found/scores")[10]) == N
    assert not runs.rows(tmp_path, "heldout/found/image")
    assert len(runs.rows(tmp_path, "heldout/worst_examples")[10]["example"]) == 2
    assert "step 10: heldout/worst_examples (largest error/p50 first):\n  example" in (tmp_path / "log.txt").read_text()
    assert runs.status(tmp_path)["metrics"]["heldout/confusion/f1/a"] == 0
    assert main(["evaluate", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"heldout/error/p50: {value:.6g}\n" in printed
    assert "curve" not in printed


def test_preempted_evaluation_stops_after_the_batch_and_returns_none():
    program = zoo.program(zoo.Classify())
    state, _ = zoo.run(program, zoo.batches(1))
    batches = []

    def on_batch():
        batches.append(1)
        os.kill(os.getpid(), signal.SIGTERM)

    with Preemption() as preemption:
        assert evaluation(program, batch_size=8).run(state, preemption, on_batch) is None
    assert len(batches) == 1


def test_evaluation_is_deterministic_and_keeps_the_state():
    program = zoo.program(zoo.Classify("cnn", dropout=0.5))
    state, _ = zoo.run(program, zoo.batches(2))
    before = jax.device_get(state)
    subject = evaluation(program)
    assert subject.run(state) == subject.run(state)
    zoo.assert_equal(state, before)


@pytest.mark.slow
def test_averaged_weights_are_evaluated_by_default():
    program = zoo.program(zoo.Classify(), ema_decay=0.5)
    state, _ = zoo.run(program, zoo.batches(4))
    averaged = expected(program, dataclasses.replace(state, params=state.ema))
    assert evaluation(program).run(state) == pytest.approx(averaged, rel=1e-5)
    assert evaluation(program, use_ema=False).run(state) == pytest.approx(expected(program, state), rel=1e-5)


def test_metric_without_weight_is_nan():
    class Empty(zoo.Classify):
        def evaluate(self, model, batch):
            return {"nothing": Mean.of(batch["x"], where=batch["valid"] * 0)}

    program = zoo.program(Empty())
    subject = evaluation(program)
    results = subject.run(program.init())
    assert subject.unweighted == ["heldout/nothing"]
    assert results is not None and np.isnan(scalars(results)["heldout/nothing"])


def test_indivisible_batch_and_empty_result_are_errors():
    program = zoo.program(zoo.Classify(), mesh=MeshSpec(data=8))
    section = {"heldout": Config(batch_size=12)}  # its own one, instead of that of the run
    with pytest.raises(ShardingError, match=r"evaluations.heldout.batch_size = 12 is not divisible by 8"):
        build_evaluations(section, {"heldout": zoo.source()}, program.evaluation, 16)

    class Silent(zoo.Classify):
        def evaluate(self, model, batch):
            return {}

    with pytest.raises(TaskError, match=r"evaluations.heldout: Silent.evaluate returned no metric"):
        evaluation(zoo.program(Silent()))


def test_evaluations_have_separate_data_and_periods(tmp_path):
    config = runs.config(
        evaluations={
            "one": dict(data=dict(target="tests.zoo.source", n=20, seed=1), every="3 steps", batch_size=8),
            "two": dict(data=dict(target="tests.zoo.source", n=50, seed=2), every=None),
        }
    )
    engine.train(config, workdir=tmp_path)
    assert sorted(runs.rows(tmp_path, "one/loss")) == [3, 6, 9, 10]
    assert sorted(runs.rows(tmp_path, "two/loss")) == [10]


def test_data_that_does_not_match_the_task_is_an_error():
    class Spec(zoo.Classify):
        def batch_spec(self):
            return {"x": jax.ShapeDtypeStruct((zoo.SIZE,), np.float32)}

    with pytest.raises(TaskError, match=r"evaluations.heldout: valid: Spec.batch_spec says nothing, the dataset gives"):
        evaluation(zoo.program(Spec()))


def test_evaluation_computes_in_the_precision_of_the_run():
    seen = {}

    @dataclasses.dataclass
    class Spy(zoo.Classify):
        full_precision = ("valid",)

        def evaluate(self, model, batch):
            seen.update(kernel=model.head.kernel.dtype, x=batch["x"].dtype, valid=batch["valid"].dtype)
            return super().evaluate(model, batch)

    program = zoo.program(Spy(), precision="bfloat16")
    evaluation(program).run(program.init())
    assert seen == {"kernel": jnp.bfloat16, "x": jnp.bfloat16, "valid": jnp.float32}
