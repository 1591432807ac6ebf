"""Sorting runs into variants: seeds of one config are one, unless code, data or a seed are the same."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from engine.base.errors import RunError
from engine.experiments.record import RunRecord
from engine.experiments.variants import Run, describe, differences, variants_of
from tests.experiments.made import make_run


def run(name: str, seed: int = 0, code: str = "1", data: str = "x", **settings: object) -> Run:
    config = {"name": name, "train.seed": seed, "log.every": name, **settings}
    record = RunRecord(path=name, state="done", config=config)
    return Run(Path(name), record, {"commit": code}, {}, {"data": data})


def names(found: list[list[Run]]) -> list[str]:
    return [" ".join(str(x.folder) for x in group) for group in found]


def test_runs_that_differ_in_the_seed_only_are_one_variant():
    found, notes = variants_of([run("a0"), run("b0", width=2), run("a1", 1), run("b1", 1, width=2)])
    assert names(found) == ["a0 a1", "b0 b1"] and notes == []
    assert describe(found[0]).seeds == (0, 1)
    assert differences(found)["settings"] == {"width": (None, 2)}


def test_seeds_of_a_trial_are_one_variant_although_only_the_first_can_be_pruned():
    hook: Any = {"hooks.sweep.decisions": "a.json"}
    found, _ = variants_of([run("a0", **hook), run("a1", 1), run("b0", width=2, **hook)])
    assert names(found) == ["a0 a1", "b0"] and "hooks.sweep.decisions" not in differences(found)["settings"]


def test_equal_seeds_are_no_two_seeds():
    assert names(variants_of([run("a0"), run("a1", 1), run("again0"), run("again1", 1)])[0]) == [
        "a0 a1",
        "again0 again1",
    ]


def test_seeds_alone_are_compared_with_each_other():
    found, [note] = variants_of([run("a0"), run("a1", 1)])
    assert names(found) == ["a0", "a1"] and "differ in nothing but the seed" in note
    assert differences(found)["settings"] == {"train.seed": (0, 1)}


def test_seed_of_other_code_or_data_is_a_variant_with_a_note():
    found, notes = variants_of([run("a0"), run("a1", 1, code="2"), run("a2", 2, data="y")])
    assert names(found) == ["a0", "a1", "a2"]
    assert "a1 has the settings of a0 and another seed, but other code" in notes[0]
    assert "a2 has the settings of a0 and another seed, but other data" in notes[1]


def test_number_of_seeds_that_differs_is_shown():
    found, _ = variants_of([run("a0"), run("a1", 1), run("b0", width=2)])
    assert differences(found)["settings"]["train.seed"] == ("0, 1", 0)


def test_start_from_other_weights_is_another_variant():
    one = run("a0")
    other = dataclasses.replace(one, record=run("a1", 1, **{"init.checkpoint": "base"}).record)
    assert len(variants_of([one, other])[0]) == 2


def test_best_checkpoint_is_compared_and_else_the_newest(tmp_path):
    folder = make_run(
        tmp_path / "a",
        {4: {"heldout/x": 1.0}, 8: {"heldout/x": 2.0}},
        checkpoint__best="heldout/x",
        checkpoint__best_mode="min",
    )
    for step in (4, 8):
        (folder / "per_example" / "heldout").mkdir(parents=True, exist_ok=True)
        (folder / "per_example" / "heldout" / f"{step}.parquet").touch()
    assert Run.read(folder).files["heldout"].stem == "4"
    (folder / "per_example" / "heldout" / "4.parquet").unlink()
    assert Run.read(folder).files["heldout"].stem == "8"


def test_what_is_not_final_or_cannot_be_read_is_a_note(tmp_path):
    training = make_run(tmp_path / "a", state="training", step=2, total_steps=5)
    (training / "data.json").write_text("{")
    failed = make_run(tmp_path / "b", state="failed", step=3, total_steps=5, reason="The loss is not finite.")
    (failed / "code.json").write_text("{")
    _, notes = variants_of([Run.read(training), Run.read(failed), Run.read(make_run(tmp_path / "c", train__seed=2))])
    assert notes[0] == f"{training}: its state is training at step 2 of 5."
    assert notes[1].startswith(f"{training}/data.json: cannot be read (Expecting")
    assert notes[2] == f"{failed}: its state is failed at step 3 of 5. The loss is not finite."
    assert notes[3].startswith(f"{failed}/code.json is damaged: Expecting")
    assert not any(f"{tmp_path}/c" in note for note in notes)


def test_run_that_is_given_twice_is_named(tmp_path):
    one = make_run(tmp_path / "a")
    _, notes = variants_of([Run.read(one), Run.read(one), Run.read(tmp_path / "a/../a")])
    assert notes[:2] == [f"{one} is given twice.", f"{tmp_path}/a/../a is the same run as {one}."]


def test_run_in_a_bucket_is_mounted(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RunError, match="gs://bucket: gcsfuse, which mounts such buckets, is not installed"):
        Run.read(Path("gs://bucket/run"))
