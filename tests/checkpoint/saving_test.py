"""A saver writes one step after the other while its caller goes on."""

import jax.numpy as jnp
import pytest

from engine.checkpoint.saving import Saver
from engine.config.errors import CheckpointError


@pytest.fixture
def saver(tmp_path):
    saver = Saver(tmp_path, lambda step, words: f"step {step}: {words}")
    yield saver
    saver.close()


def start(saver, step):
    saver.start(step, {"w": jnp.full(4, float(step))}, {"next_batch": step}, "")


def test_a_save_is_under_way_until_it_was_waited_for(saver):
    assert saver.wait() is None and not saver.ended()
    start(saver, 1)
    while not saver.ended():
        assert not (saver.directory / "1" / "none").exists()
    assert saver.wait() == 1 and not saver.ended()
    assert (saver.directory / "1").is_dir()


def test_a_step_that_lies_there_is_replaced(saver):
    for _ in range(2):
        start(saver, 1)
        saver.wait()
    assert [path.name for path in saver.directory.iterdir()] == ["1"]


def test_a_save_that_failed_is_told_once_and_the_next_one_works(saver):
    for path in [*saver.directory.iterdir(), saver.directory]:
        path.rmdir()
    saver.directory.write_text("a file is in the way")
    with pytest.raises(CheckpointError, match=r"^step 1: "):
        start(saver, 1)
        saver.wait()
    assert saver.wait() is None
    saver.directory.unlink()
    start(saver, 2)
    assert saver.wait() == 2
