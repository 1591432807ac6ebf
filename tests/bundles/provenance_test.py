"""What a manifest says about the origin of a bundle."""

import dataclasses
import json

import engine
from engine.api.saved_run import SavedRun
from engine.bundles.provenance import provenance
from tests.bundles import subjects


def test_averaged_weights_are_said_to_be_averaged():
    saved, found = SavedRun(subjects.reader_run()), engine.load(subjects.reader_run())
    train = dataclasses.replace(found.config.train, ema_decay=0.9)
    found = dataclasses.replace(found, config=dataclasses.replace(found.config, train=train))
    assert provenance(saved, found)["run"]["weights"] == "averaged"


def test_run_in_the_working_directory_has_a_name(monkeypatch):
    monkeypatch.chdir(subjects.reader_run())
    assert provenance(SavedRun("."), engine.load(".", step=4))["name"] == "reader"


def test_origin_holds_no_time_and_no_path():
    run = subjects.reader_run()
    found = provenance(SavedRun(run), engine.load(run, step=4))
    assert found["run"]["step"] == 4 and len(found["run"]["checkpoint"]) > 10
    assert (found["run"]["weights"], found["run"]["precision"]) == ("trained", "float32")
    assert found["run"]["trained_with"]["jax"] == found["versions"]["jax"]
    text = json.dumps(found)
    assert str(run.parent) not in text and '"time"' not in text
