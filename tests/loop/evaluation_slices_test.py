"""Slices of evaluations, the worst examples, and the metrics of each example, on any mesh with any batch size."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Balanced, Mean, Mixture, Packed, metrics
from engine.base import json_text
from engine.base.errors import TaskError
from engine.config.schema import Data, MeshSpec, Target
from engine.config.schema import Evaluation as Config
from engine.experiments import resampling
from engine.loop.evaluation import Evaluator
from engine.loop.evaluations import check_watched
from engine.metrics.example_file import read_parquet
from engine.metrics.results import json_values
from engine.metrics.slices import Examples
from tests import zoo
from tests.measuring import SLICED, Measure
from tests.predicting import NAMES, SIZES, Ragged, Unreadable, bucketed

N = 37  # not a multiple of any batch size here


def evaluation(program, batch_size=16, **config):
    return Evaluator("heldout", Config(**config), zoo.source(N, seed=5), program.evaluation, batch_size)


@pytest.mark.slow
def test_slices_are_evaluations_of_their_examples_on_any_mesh_with_any_batch_size(tmp_path):
    slices = {"id": Target(target="tests.measuring.by_id"), **SLICED.slices}
    tags = {"key": "id", "label": "y", "name": "tests.measuring.name_of"}
    config = dataclasses.replace(SLICED, slices=slices, data=Data(on_error="skip"), per_example=True, tags=tags)
    bad = (4, 36)
    results, files = [], []
    split, program = zoo.program(Measure(), mesh=MeshSpec(data=2, fsdp=4)), zoo.program(Measure())
    state = program.init()
    for used, batch_size in ((split, 16), (program, 37), (program, 10)):
        subject = Evaluator("heldout", config, Unreadable(bad), used.evaluation, batch_size)
        found = subject.run(split.init() if used is split else state)
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
    source = Unreadable()
    alone = Evaluator("heldout", Config(data=Data(on_error="skip")), source, program.evaluation, 8)
    for name, chosen in members.items():
        source.bad = set(range(N)) - set(chosen)
        expected = {f"heldout/{name}/{key[8:]}": value for key, value in json_values(alone.run(state) or {}).items()}
        assert json_text.dumps({key: results[0][key] for key in expected}) == json_text.dumps(expected)
        assert results[0][f"heldout/{name}/examples"] == len(chosen)
    scores = {i: np.quantile(data["x"][i], 0.9) for i in kept if data["valid"][i]}
    worst = sorted(scores, key=lambda i: -scores[i])[:5]
    assert results[0]["heldout/worst_examples"]["example"] == worst
    assert results[0]["heldout/worst_examples"]["id"] == [NAMES[i] for i in worst]
    stored = assert_states_give(files[0].content, results[0], tmp_path / "0.parquet")
    assert stored.indices.tolist() == kept
    assert stored.tags["key"].tolist() == [NAMES[i] for i in kept]
    assert (stored.tags["label"] == data["y"][kept]).all() and stored.tags["name"][0].startswith("Straße ")
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


def assert_states_give(content: bytes, wanted: Mapping[str, Any], path: Path) -> Examples:
    """Asserts that the stored states of single examples, which it returns, merge to the results of each slice."""
    path.write_bytes(content)
    stored = read_parquet(path)
    for part, members in {"": np.ones(len(stored.indices), bool), **stored.slices}.items():
        for name, metric in stored.metrics.items():
            full = f"heldout/{part}/{name}".replace("//", "/")
            found = resampling.results(full, metric, members.astype(np.int64))
            assert found == {key: pytest.approx(wanted[key], rel=1e-12, nan_ok=True) for key in found}
            assert found
    return stored


def test_bucketed_examples_are_sliced_and_named_by_their_index_with_one_program_per_length(tmp_path):
    traced = []

    class Points(zoo.Classify):
        def evaluate(self, model, batch):
            traced.append(batch["points"].shape)
            return {"points": metrics.Sum.of(batch["points"] * batch["mask"])}

    program = zoo.program(Points())
    listing: Any = dict(worst=4, score="points", worst_mode="min", per_example=True, tags={"key": "id"})
    subject = Evaluator("heldout", Config(slices=SLICED.slices, **listing), bucketed(), program.evaluation, 8)
    traced.clear()
    state = program.init()
    assert subject.run(state) is not None
    found = subject.run(state)
    assert sorted(traced) == [(8, 2), (8, 8)]
    assert found is not None
    assert json_values(found)["heldout/worst_examples"]["example"] == sorted(range(N), key=lambda i: i * SIZES[i])[:4]
    high = [i for i, x in enumerate(zoo.examples(N, seed=5)["x"]) if x.mean() > 0.1]
    assert found["heldout/high/points"] == sum(i * SIZES[i] for i in high)
    file: Any = found["heldout/per_example"]
    (path := tmp_path / "0.parquet").write_bytes(file.content)
    stored: Any = read_parquet(path)  # in the order of the dataset
    assert stored.tags["key"].tolist() == NAMES
    assert stored.metrics["points"].total.tolist() == [i * size for i, size in enumerate(SIZES)]


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


def test_worst_examples_follow_the_direction_of_their_score_and_equal_keys_are_a_warning(caplog):
    program = zoo.program(zoo.Classify())
    subject = evaluation(program, worst=3, score="accuracy", per_example=True, tags={"key": "y"})
    table: Any = (subject.run(program.init()) or {})["heldout/worst_examples"]
    y = zoo.examples(N, seed=5)["y"]
    first, second = np.flatnonzero(y == 0)[:2]
    named = f"evaluations.heldout.tags.key: examples {first} and {second} are both named 0, so that the key does not"
    assert [record.getMessage().startswith(named) for record in caplog.records] == [True]
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
