"""The settings of a run, beside their defaults and those of the parent run."""

from engine.experiments.record import read_record
from engine.report.settings import Setting, parent_of, read_texts, settings_of
from tests.experiments.made import make_run


def found(run, parent=None) -> dict[str, Setting]:
    return {setting.name: setting for setting in settings_of(read_texts(run / "config.txt"), parent)}


def test_defaults_are_known_also_in_evaluations(tmp_path):
    settings = found(make_run(tmp_path / "a"))
    assert settings["optimizer.learning_rate"][1:3] == ("0.01", "0.001")
    assert settings["evaluations.heldout.every"][1:3] == ("4 steps", "1 epoch")
    assert settings["evaluations.heldout.data.n"].default is None


def test_parent_is_found_by_the_path_of_a_checkpoint(tmp_path):
    parent = make_run(tmp_path / "parent", train__seed=5)
    child = make_run(tmp_path / "child", init__checkpoint=str(parent / "checkpoints" / "10"))
    known = parent_of(read_record(child, str(child)))
    assert known is not None
    settings = found(child, known)
    assert (settings["train.seed"].value, settings["train.seed"].parent) == ("0", "5")


def test_parent_beside_the_run_is_found_from_another_folder(tmp_path):
    make_run(tmp_path / "parent")
    child = make_run(tmp_path / "child", init__checkpoint="runs/parent")
    assert parent_of(read_record(child, str(child))) == ("runs/parent", None)
    other = make_run(tmp_path / "other", init__checkpoint="parent")
    known = parent_of(read_record(other, str(other)))
    assert known is not None and known.settings


def test_run_without_parent_has_none(tmp_path):
    assert parent_of(read_record(make_run(tmp_path / "a"), "a")) is None
