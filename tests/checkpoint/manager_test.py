"""Orbax is opened in one way, is quiet, and what it raises becomes a sentence."""

import json

import jax.numpy as jnp
import pytest

from engine.checkpoint.manager import CONFIG, POSITION, failing, open_manager, orbax
from engine.config.errors import CheckpointError


def test_an_error_becomes_a_sentence_of_its_first_line():
    full = OSError("disk full\nand a page of where in C++")
    with (
        pytest.raises(CheckpointError, match=r"^here \(OSError: disk full\)$"),
        failing(lambda words: f"here ({words})"),
    ):
        raise full
    with pytest.raises(CheckpointError, match=r"^as it is$"), failing(lambda words: "another"):
        raise CheckpointError("as it is")


def test_the_three_items_of_a_step_lie_in_folders_of_their_own(tmp_path):
    ocp, manager = orbax(), open_manager(tmp_path)
    items = ocp.args.Composite(
        state=ocp.args.PyTreeSave({"w": jnp.zeros(3)}),
        position=ocp.args.JsonSave({"next_batch": 2}),
        config=ocp.args.JsonSave({"lines": ["name: zoo"]}),
    )
    manager.save(2, args=items)
    manager.close()
    assert json.loads((tmp_path / "2" / "position" / POSITION).read_text()) == {"next_batch": 2}
    assert json.loads((tmp_path / "2" / "config" / CONFIG).read_text()) == {"lines": ["name: zoo"]}
    assert (tmp_path / "2" / "state" / "_METADATA").is_file()


def test_only_a_writer_makes_the_directory(tmp_path):
    open_manager(tmp_path / "none", read_only=True).close()
    open_manager(tmp_path / "made").close()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
