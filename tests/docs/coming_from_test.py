"""The right-hand sides of "Coming from Lightning, Keras or Flax" are one program, and it does what the page says."""

from typing import Any

import numpy as np
import pytest

from tests.docs import pages

PAGE = pages.ROOT / "docs" / "coming-from.md"


def blocks(mark: str = "") -> list[str]:
    found = [block for block in pages.blocks(PAGE.read_text()) if (mark in block.marks) == bool(mark)]
    return [block.text for block in found]


def test_page_has_twenty_rows_of_two_sides():
    assert len(blocks("ours")) == len(blocks()) - len(blocks("ours")) == 20


@pytest.mark.slow
def test_right_hand_sides_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for number, text in enumerate(blocks("ours"), 1):
        exec(compile(text, f"row {number}", "exec"), names)
    summary, longer, found = names["summary"], names["longer"], names["found"]
    assert (summary.step, longer.step) == (12, 18)  # 96 examples, batches of 32, 4 and 6 epochs
    assert (found["step"], found["test/accuracy"]) == longer.best["test/accuracy"]
    assert {"test/confusion/accuracy", "test/confusion/f1"} <= found.keys()
    guesses = names["probability"].argmax(-1)
    assert np.mean(guesses == names["test"].arrays["label"]) > 0.8
    assert "step 3" in capsys.readouterr().err  # the hook, after the first epoch
