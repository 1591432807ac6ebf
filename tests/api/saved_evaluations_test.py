"""Evaluations of saved checkpoints: stored results, and several steps."""

import json
import logging
import shutil

import pytest

import engine
from engine.api import inference
from engine.api.saved_evaluations import choose_steps, log, read_results
from engine.api.saved_run import SavedRun
from engine.base.errors import CheckpointError, ConfigError
from engine.cli.main import main
from engine.data.source import limited
from engine.metrics.example_file import read_parquet
from tests import evaluated, zoo
from tests.evaluated import SMALL, stored


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return evaluated.train(tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_results_are_stored_with_the_settings_that_differ(run):
    found = engine.evaluate(run, step=4)
    small = engine.evaluate(run, step=4, overrides=[*SMALL, "mesh.fsdp=2"])
    other = engine.evaluate(run, evaluation_data={"other": zoo.source(12, seed=3)})
    assert other.keys() == {"step", "heldout/loss", "heldout/accuracy", "other/loss", "other/accuracy"}
    first, second, _, third = stored(run)
    assert (first.step, first.evaluation, first.settings) == (4, "heldout", {})
    assert first.metrics == {name: value for name, value in found.items() if name != "step"}
    assert second.settings == {"evaluations.heldout.data.n": "20"}
    assert second.metrics["heldout/loss"] == small["heldout/loss"] != found["heldout/loss"]
    assert third.evaluation == "other"
    assert third.settings["evaluations.other.data.type"] == "engine.data.source.ArraySource"
    assert "an object with the content" in third.settings["evaluations.other.data"]
    assert first.time.endswith("+00:00")


def test_limit_of_the_config_applies_to_an_object(run):
    source = zoo.source(20, seed=3)
    expected = engine.evaluate(run, evaluation_data={"heldout": limited(source, 12)})
    file = run / "config.txt"
    old = file.read_text()
    file.write_text(old.replace("evaluations.heldout.data.limit: None", "evaluations.heldout.data.limit: 12"))
    assert old != file.read_text()
    assert engine.evaluate(run, evaluation_data={"heldout": source}) == pytest.approx(expected)
    larger = ["evaluations.heldout.data.limit=20"]
    assert engine.evaluate(run, evaluation_data={"heldout": source}, overrides=larger) != pytest.approx(expected)


def test_several_steps_are_evaluated_with_one_program(run, capsys):
    assert [found["step"] for found in inference.evaluate_steps(run, "all")] == [2, 4, 6]
    assert choose_steps(SavedRun(run), "6, 2,latest") == [6, 2]
    with pytest.raises(CheckpointError, match=r"no checkpoint '3'"):
        choose_steps(SavedRun(run), "2,3")
    assert main(["evaluate", str(run), "--step=2,latest", "--evaluations.heldout.data.n=20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line or line.startswith("step")] == ["step: 2", "", "step: 6"]
    assert len(stored(run)) == 5


def test_directory_that_cannot_be_written_gives_a_sentence(run, capsys):
    (run / "evaluations.jsonl").mkdir()
    assert main(["evaluate", str(run), "--step=2,4"]) == 0
    captured = capsys.readouterr()
    assert "heldout/loss: " in captured.out
    assert captured.err.count("cannot be written (Is a directory), so the results are not stored.") == 1


def test_damaged_lines_are_left_out(run):
    engine.evaluate(run, step=2)
    file = run / "evaluations.jsonl"
    file.write_text("[1\n{}\n3\n" + file.read_text() + '{"step": 4, "eval')
    assert [result.step for result in stored(run)] == [2]
    engine.evaluate(run, step=4)
    assert [result.step for result in stored(run)] == [2, 4]


def test_run_without_evaluations_says_how_to_add_one(run):
    config = (run / "config.txt").read_text()
    (run / "config.txt").write_text("\n".join(line for line in config.splitlines()[1:] if "heldout" not in line))
    with pytest.raises(ConfigError, match=r"no evaluations. Add one: --evaluations.NAME.data.target="):
        engine.evaluate(run)
    assert engine.evaluate(run, overrides=["evaluations.a.data.target=tests.zoo.source"]).keys() >= {"a/loss"}


def test_slices_and_worst_examples_of_an_existing_run_are_printed_and_stored(run, capsys):
    flags = ["--evaluations.heldout.slices.high.target=tests.measuring.is_high", "--evaluations.heldout.worst=3"]
    flags += ["--evaluations.heldout.per_example=True", "--evaluations.heldout.tags.class=y"]
    assert main(["evaluate", str(run), "--step=2", *flags]) == 0
    assert "\nheldout/worst_examples (largest loss first):\n  example" in capsys.readouterr().out
    [line] = stored(run)
    assert line.metrics.keys() >= {"heldout/high/loss", "heldout/high/examples", "heldout/worst_slices"}
    assert len(line.metrics["heldout/worst_examples"]["loss"]) == 3
    assert line.section["slices.high.target"] == "tests.measuring.is_high"
    listing = {"worst", "score", "worst_mode", "tags.class", "tags"}
    assert not line.section.keys() & listing  # earlier results have none and stay valid
    kept = read_parquet(run / "per_example" / "heldout" / "2.parquet")
    assert kept.tags["class"].tolist() == zoo.examples(37, seed=9)["y"].tolist()
    contents = [each["content"] for each in json.loads((run / "data.json").read_text()).values()]
    assert kept.content in contents


def test_sentences_are_warnings_only_where_they_say_so(caplog):
    with caplog.at_level(logging.INFO, "convoy"):
        for text in ("warning: the mesh does not fit.", "evaluating runs/a at step 3"):
            log(text)
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert found == [("WARNING", "the mesh does not fit."), ("INFO", "evaluating runs/a at step 3")]


def test_stored_results_have_the_names_of_today(tmp_path):
    (tmp_path / "evaluations.jsonl").write_text(
        '{"step": 2, "evaluation": "heldout", "metrics": {}, "settings": {"task.target": "models.digits.Digits"}, '
        '"section": {"data.target": "models.digits.scans", "batch_size": "8"}, "time": ""}\n'
    )
    [found] = read_results(tmp_path / "evaluations.jsonl")
    assert found.settings == {"task.target": "convoy_zoo.models.digits.Digits"}
    assert found.section == {"data.target": "convoy_zoo.models.digits.scans", "batch_size": "8"}
