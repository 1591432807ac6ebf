"""Weights from an earlier run: the rule, which file counts, and a run that is trained with them and resumed."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import engine
from engine.base.errors import ConfigError, DataError, FieldError
from engine.config.validation import validate
from engine.experiments.example_weights import WeightedByRun
from engine.metrics import Mean, RootMeanSquare
from engine.metrics.example_file import path_of, to_parquet
from engine.metrics.slices import Examples
from engine.run import ledger
from tests import runs, zoo
from tests.experiments.made import make_run

COUNT = 64
SOURCE = zoo.source(COUNT)
LOSSES = np.linspace(0, 3, COUNT)


def examples(losses=LOSSES, **more):
    ones = jnp.ones(len(losses))
    labels = SOURCE.arrays["y"][: len(losses)]
    slices = {f"label/{label}": labels == label for label in range(4)} | {"rare": labels == 0}
    metrics = {"loss": Mean(jnp.asarray(losses, jnp.float32), ones), **more}
    return Examples(np.arange(len(losses)), slices, metrics)


def run_with(folder, found=None, evaluation="train", step=10, content=None):
    """Writes a run that has the metrics of examples of the source."""
    make_run(folder, {step: {}}, data__target="tests.zoo.source")
    summary = {"examples": str(COUNT), "each": "", "content": content or SOURCE.fingerprint()}
    (folder / "data.json").write_text(json.dumps({"data": summary, f"evaluations.{evaluation}.data": summary}))
    file = folder / path_of(evaluation, step)
    file.parent.mkdir(parents=True)
    file.write_bytes(to_parquet(found or examples()))
    return folder


def weights(source):
    """Returns how often each example is drawn in many epochs, relative to the mean."""
    sampler = source.sampler(0, True)
    drawn = np.bincount(sampler.addresses(np.arange(COUNT * 200)) % COUNT, minlength=COUNT)
    return drawn / drawn.mean()


def test_weight_is_the_bounded_power_of_the_ratio_to_the_mean(tmp_path):
    run = run_with(tmp_path / "run")
    for power, bound in ((1.0, 4.0), (2.0, 3.0), (0.0, 4.0)):
        expected = np.clip((LOSSES / LOSSES.mean()) ** power, 1 / bound, bound)
        found = weights(WeightedByRun(SOURCE, str(run), power=power, bound=bound))
        np.testing.assert_allclose(found, expected / expected.mean(), atol=0.03)


def test_example_without_a_score_has_weight_1_and_a_score_to_be_large_is_inverted(tmp_path):
    hits = np.tile([0.0, 1.0], COUNT // 2).astype(np.float32)
    labelled = np.arange(COUNT) >= 8
    accuracy = Mean(jnp.asarray(hits * labelled), jnp.asarray(labelled, jnp.float32))
    run = run_with(tmp_path / "run", examples(accuracy=accuracy))
    expected = np.where(labelled, np.where(hits == 1, 0.5, 4.0), 1.0)
    found = weights(WeightedByRun(SOURCE, str(run), score="accuracy"))
    np.testing.assert_allclose(found, expected / expected.mean(), atol=0.03)


def test_slices_of_other_examples_weight_the_examples_with_their_tag(tmp_path):
    found = examples(np.linspace(0, 3, 40))
    run = run_with(tmp_path / "run", found, "heldout", content="others")
    losses = {label: np.linspace(0, 3, 40)[found.slices[f"label/{label}"]].mean() for label in range(4)}
    by_label = np.array([losses[label] for label in range(4)]) / 1.5
    labels = SOURCE.arrays["y"]
    drawn = weights(WeightedByRun(SOURCE, str(run), by="label", tags="y"))
    expected = by_label[labels] / by_label[labels].mean()
    np.testing.assert_allclose(drawn, expected, atol=0.05)
    tagged = Examples(found.indices, {}, found.metrics, {"label": labels[:40]})
    by_tag = WeightedByRun(SOURCE, str(run_with(tmp_path / "tags", tagged, "heldout")), by="label", tags="y")
    np.testing.assert_array_equal(weights(by_tag), drawn)
    with pytest.raises(ConfigError, match=r"no slice weather/VALUE and no tag weather. Names there: label"):
        WeightedByRun(SOURCE, str(run), by="weather")


def test_another_number_of_a_metric_is_computed_for_each_example(tmp_path):
    rms = RootMeanSquare(jnp.asarray(np.square(LOSSES), jnp.float32), jnp.ones(COUNT))
    by_loss, by_rms = (
        weights(WeightedByRun(SOURCE, str(run_with(tmp_path / score, examples(error=rms))), score=score))
        for score in ("loss", "error")
    )
    np.testing.assert_allclose(by_loss, by_rms, atol=0.03)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (dict(run="{}/none"), "is no run directory, and no folder or file"),
        (dict(run="{}/run/per_example/trian"), r"no metrics of single examples of 'trian'.*mean train"),
        (dict(run="{}/run/per_example/train/11.parquet"), "does not exist. Steps: 10"),
        (dict(run="{}/run", score="los"), "there is no score 'los'. Did you mean loss"),
        (dict(run="{}/run", bound=0.5), "bound = 0.5. Allowed"),
        (dict(run="{}/other"), "no evaluation of .*other is known to have read the examples of `data`"),
        (dict(run="{}/short"), "the metrics of the first 40 examples, but `data` has 64"),
        (dict(run="{}/negative"), "are from -1 to 2, and their mean is 0.5. A ratio"),
        (dict(run="{}/infinite", by="label"), "their mean is inf. A ratio"),
        (dict(run="{}/empty"), "has no metrics of single examples. Write them: convoy evaluate"),
    ],
)
def test_what_gives_no_weights_is_refused(arguments, problem, tmp_path):
    run_with(tmp_path / "run")
    run_with(tmp_path / "other", content="others")
    run_with(tmp_path / "short", examples(LOSSES[:40]))
    run_with(tmp_path / "negative", examples(LOSSES - 1))
    run_with(tmp_path / "infinite", examples(np.where(LOSSES > 0, LOSSES, np.inf)))
    make_run(tmp_path / "empty")
    with pytest.raises(ConfigError, match=problem):
        WeightedByRun(SOURCE, **{**arguments, "run": arguments["run"].format(tmp_path)})


def test_evaluation_that_has_read_these_examples_is_found(tmp_path):
    run = run_with(tmp_path / "run")
    file = run / path_of("heldout", 10)
    file.parent.mkdir()
    file.write_bytes(to_parquet(examples(LOSSES[::-1])))
    assert WeightedByRun(SOURCE, str(run)).origin.evaluation == "train"
    lines = [{"step": 10, "evaluation": "heldout", "section": {"data.target": "tests.zoo.source"}}]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match=r"has the metrics of examples of heldout, train. Name one: .*/heldout"):
        WeightedByRun(SOURCE, str(run))
    for named in (file, file.parent):
        assert WeightedByRun(SOURCE, str(named)).origin.evaluation == "heldout"


def test_file_says_which_examples_were_read(tmp_path):
    """`convoy evaluate` may have read others than those of the config, under the same name."""
    run = run_with(tmp_path / "run", dataclasses.replace(examples(), content="others"))
    with pytest.raises(ConfigError, match=r"no evaluation of .* is known to have read the examples"):
        WeightedByRun(SOURCE, str(run))


def test_evaluations_have_no_weights():
    c = runs.config()
    with pytest.raises(FieldError, match=r"evaluations.heldout.data.weights_from.*reads each example once"):
        runs.config(evaluations__heldout__data__weights_from="runs/a")
    assert validate(c).data.weights_from is None


@pytest.mark.slow
def test_run_learns_from_an_earlier_one_and_resumes_with_the_same_weights_only(tmp_path):
    data = dict(target="tests.zoo.source")
    settings = dict(evaluations={"train": dict(data=data, per_example=True)}, log__examples=True)
    engine.train(runs.config(train__total="2 steps", **settings), workdir=tmp_path / "base")
    weighted = dict(evaluations={}, log__examples=True, data__weights_from=str(tmp_path / "base"))
    fixed = dict(optimizer__schedule="constant", **weighted)
    engine.train(runs.config(train__total="8 steps", **fixed), workdir=tmp_path / "next")

    [file] = (tmp_path / "base/per_example/train").iterdir()
    source = WeightedByRun(SOURCE, str(tmp_path / "base"))
    assert source.origin.file == file and source.origin.step == 2
    stored = json.loads((tmp_path / "next/data.json").read_text())["data"]["content"]
    assert stored == source.fingerprint() and source.origin.id in stored
    drawn = [index for indices in ledger.read(tmp_path / "next/examples").values() for index in indices]
    sampler = source.sampler(0, True)
    assert drawn == [sampler.locate(address)[1] for address in sampler.addresses(np.arange(8 * 16)).tolist()]

    file.write_bytes(to_parquet(examples()))
    longer = runs.config(train__total="10 steps", **fixed)
    with pytest.raises(DataError, match="xxh3_128"):
        engine.train(longer, workdir=tmp_path / "next")
