"""The stages of a save, and what it checks before it counts."""

import itertools

import pytest

from engine.base.errors import CheckpointError
from engine.checkpoint.frozen import Frozen
from engine.checkpoint.manifest import Manifest
from engine.checkpoint.save_stages import AsyncSave, SaveFailed, SaveStage

STAGES = [SaveStage.WRITING, SaveStage.FINISHING, SaveStage.HASHING, SaveStage.COMMITTING, SaveStage.DURABLE]


def in_stage(tmp_path, stage):
    save = AsyncSave(1, 1, "save/test", tmp_path, 16)
    for old, new in itertools.pairwise(STAGES[: STAGES.index(stage) + 1]):
        save.advance(old, new)
    return save


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_save_can_fail_once_from_any_stage(tmp_path, stage):
    save = in_stage(tmp_path, stage)
    assert not save.ended() and save.fail("the disk is full")
    assert save.ended() and save.wait(0) and save.stage is SaveStage.FAILED
    assert not save.fail("later") and save.failure == "the disk is full"
    with pytest.raises(SaveFailed):
        save.advance(stage, STAGES[STAGES.index(stage) + 1])


def test_durable_save_cannot_fail_and_stages_cannot_be_skipped(tmp_path):
    save = in_stage(tmp_path, SaveStage.DURABLE)
    assert save.ended() and not save.fail("late") and save.failure == ""
    with pytest.raises(AssertionError, match="step 1 is writing, not hashing"):
        in_stage(tmp_path, SaveStage.WRITING).advance(SaveStage.HASHING, SaveStage.COMMITTING)


def test_saved_frozen_parameters_are_what_later_steps_refer_to(tmp_path):
    base, step = (AsyncSave(2, 1, "save/test", tmp_path, 16, name) for name in ("frozen-2", ""))
    assert (base.is_step, step.is_step) == (False, True)
    manifest = Manifest(2, {}, {"params/w": "0123456789abcdef"})
    base.frozen = Frozen("frozen-2", "", ("w",))
    base.refer_to(manifest)
    step.frozen = base.frozen
    assert step.frozen == Frozen("frozen-2", manifest.hash, ("w",), manifest.arrays) and len(manifest.hash) == 32
    step.refer_to(Manifest(3, {}, {**manifest.arrays, "step": "1"}))
    with pytest.raises(CheckpointError, match="1 frozen parameters, such as params/w, differ from those that frozen-2"):
        step.refer_to(Manifest(3, {}, {"params/w": "1123456789abcdef"}))
