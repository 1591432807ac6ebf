import dataclasses
import os
import re
from pathlib import Path

import pytest

from engine.base.errors import ConfigError, RunError
from engine.sweeps.folder import Definition, SweepFolder, open_folder
from engine.sweeps.workers import Job
from tests.sweeps import scripted

pytestmark = pytest.mark.filterwarnings("ignore:.*fork")  # of JAX, if another test has imported it


def test_new_sweep_is_stored_and_the_same_one_continues(tmp_path):
    folder, definition = SweepFolder(tmp_path / "a sweep"), scripted.definition()
    assert not folder.exists()
    assert not folder.agree(definition)
    assert folder.agree(definition)
    assert folder.read() == definition


CHANGES = {
    "space": ({"optimizer.b1": "choice(1)"}, "space: optimizer.b1 was absent and is choice(1)"),
    "config": ({"train.total": "31 steps"}, "config: train.total was 30 steps and is 31 steps"),
    "metric": ("heldout/loss", "metric was 'heldout/accuracy' and is 'heldout/loss'"),
    "direction": ("min", "direction was 'max' and is 'min'"),
    "sampler": ("tpe", "sampler was 'grid' and is 'tpe'"),
    "prune": ("median", "prune was '' and is 'median'"),
    "rung": (5, "rung was 0 and is 5"),
    "factor": (3, "factor was 2 and is 3"),
    "seeds": (3, "seeds was 1 and is 3"),
    "budget": ("5 steps", "budget was '' and is '5 steps'"),
    "seed": (1, "seed was 9 and is 1"),
    "storage": ("sqlite:///x", "storage was '' and is 'sqlite:///x'"),
}
FREE = {"name": "moved", "trials": 99, "reference": "configs.other", "overrides": ["train.seed=1"]}


def test_every_field_is_compared_or_may_change():
    assert {field.name for field in dataclasses.fields(Definition)} == {*CHANGES, *FREE}


@pytest.mark.parametrize("name", CHANGES)
def test_another_definition_is_refused_by_name(tmp_path, name):
    value, text = CHANGES[name]
    folder, before = SweepFolder(tmp_path), scripted.definition()
    folder.agree(before)
    value = {**getattr(before, name), **value} if isinstance(value, dict) else value
    with pytest.raises(ConfigError, match=f"is a sweep with another definition: {re.escape(text)}. Use the same"):
        folder.agree(scripted.definition(**{name: value}))
    assert folder.read() == before


def test_many_differences_are_counted(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.agree(scripted.definition())
    changed = {name: value for name, (value, _) in CHANGES.items() if not isinstance(value, dict)}
    with pytest.raises(ConfigError, match="; and 7 more"):
        folder.agree(scripted.definition(**changed))


@pytest.mark.parametrize("name", FREE)
def test_number_of_trials_and_the_place_of_the_config_may_change(tmp_path, name):
    folder, changed = SweepFolder(tmp_path), scripted.definition(**{name: FREE[name]})
    folder.agree(scripted.definition())
    assert folder.agree(changed)
    assert folder.read() == (scripted.definition() if name == "name" else changed)  # a moved folder keeps its study


def test_settings_of_the_log_and_the_caches_may_change():
    before = scripted.definition(config={"log.every": "1 epoch"})
    after = scripted.definition(config={"log.every": "2 epochs", "cache.programs": "a", "profile.at": "3"})
    assert before.differences(after) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is not the definition of a sweep"),
        ('{"format": 2}', "is not the definition of a sweep (another format)"),
        ('{"format": 1, "nam": "x"}', "is not the definition of a sweep"),
    ],
)
def test_damaged_definition_is_one_sentence(tmp_path, text, problem):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(RunError, match=re.escape(problem)):
        SweepFolder(tmp_path).read()


def test_folder_without_a_sweep_is_named(tmp_path):
    with pytest.raises(RunError, match=r"holds no sweep \(sweep.json is missing\)"):
        SweepFolder(tmp_path).read()


def test_second_driver_is_refused_until_the_first_one_has_ended(tmp_path):
    folder = SweepFolder(tmp_path / "new")
    with folder.locked():
        child = os.fork()
        if child == 0:
            try:
                with SweepFolder(folder.path).locked():
                    os._exit(0)
            except ConfigError as error:
                os._exit(7 if "another process works on this sweep" in str(error) else 8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with folder.locked():
        pass


def test_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    problem = r"file/x: cannot be written \(.+\)\. Choose another --workdir"
    with pytest.raises(ConfigError, match=problem), SweepFolder(tmp_path / "file" / "x").locked():
        pass


def test_each_seed_has_its_own_directory_and_job():
    folder = SweepFolder(Path("sweeps/x"))
    assert (folder.job_name(3, 0, 1), folder.run(3, 0, 1)) == ("trial-0003", Path("sweeps/x/trials/0003"))
    assert (folder.job_name(3, 2, 3), folder.run(3, 2, 3)) == ("trial-0003-seed-2", Path("sweeps/x/trials/0003/seed-2"))
    job = Job("trial-0003", [], Path())
    assert folder.decision(job) == Path("sweeps/x/decisions/trial-0003.json")
    assert folder.clock(job) == Path("sweeps/x/decisions/trial-0003.clock")


def test_bucket_is_refused():
    with pytest.raises(ConfigError, match="not a bucket"):
        open_folder("gs://bucket/sweep")
