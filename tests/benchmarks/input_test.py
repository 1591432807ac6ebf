"""The benchmark of input: files and sources, the check of the resume, its rows, and what is left out."""

import argparse
import contextlib
from typing import Any

import numpy as np
import pytest

from benchmarks import input, input_engine, input_files, input_grain
from benchmarks.input import ENGINE, GRAIN, TORCH

WITHOUT_JPEG = [name for name in input_files.SOURCES if name != "cameras"]


@pytest.mark.parametrize("name", WITHOUT_JPEG)
def test_feed_of_each_source_resumes_exactly(name, tmp_path):
    input_files.write(name, tmp_path, tiny=True)
    input.check_resume(name, tmp_path)


def test_cameras_are_cropped_flipped_and_brightened(tmp_path):
    pytest.importorskip("simplejpeg")
    input_files.write("cameras", tmp_path, tiny=True)
    input.check_resume("cameras", tmp_path)
    source = input_files.open_source("cameras", tmp_path)
    example = source[0]
    assert [image.shape for image in example["images"]] == [(450, 800, 3)] * 6
    one, two = (source.augment(example, np.random.default_rng(seed))["images"] for seed in (0, 1))
    assert one.shape == (6, 256, 704, 3) and not np.array_equal(one, two)


def test_feed_that_resumes_at_another_batch_is_an_error(tmp_path, monkeypatch):
    input_files.write("small", tmp_path, tiny=True)
    opened = input_engine.open_feed
    monkeypatch.setattr(input_engine, "open_feed", lambda name, folder, start: opened(name, folder, start=2 * start))
    with pytest.raises(RuntimeError, match="small: a feed that resumes at batch 3 gives another batch"):
        input.check_resume("small", tmp_path)


def test_row_compares_the_faster_modes_of_all_libraries():
    rates = {
        (ENGINE, "threads"): [10.0, 30.0, 20.0],
        (ENGINE, "processes"): [5.0, 5.0, 5.0],
        (GRAIN, "threads"): [1.0, 1.0, 1.0],
        (GRAIN, "processes"): [5.0, 10.0, 40.0],
        (TORCH, "processes"): [9.0, 9.0, 9.0],
    }
    row = input.row("small", rates)
    assert row.values == (2.0, 3.0, 0.5)
    assert row.target == "at least 1.2: met"
    assert row.note == (
        "engine 20 (threads), Grain 10 (processes), PyTorch 9 (workers) examples/s; the engine resumes exactly"
    )
    del rates[TORCH, "processes"]
    assert input.row("tokens", rates).note.endswith(
        "; without PyTorch: give --torch=PYTHON, with simplejpeg for the cameras"
    )


def test_grain_reads_small_arrays_a_batch_at_a_time(tmp_path):
    input_files.write("small", tmp_path, tiny=True)
    source: Any = input_files.open_source("small", tmp_path)
    source.__class__ = type("Counted", (input_files.Small,), {"__getitem__": lambda self, index: pytest.fail("one")})
    with contextlib.closing(iter(input_grain.dataset("small", source, "threads"))) as batches:
        first, second = next(batches), next(batches)
    assert first["image"].shape == (256, 28, 28) and first["label"].shape == (256,)
    assert not np.array_equal(first["image"], second["image"])


def test_cameras_are_compared_without_torch_where_its_interpreter_lacks_their_decoder(tmp_path):
    for name, code in (("has", 0), ("lacks", 1)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
        assert input.has_simplejpeg(str(tmp_path / name)) == (not code)


def test_cameras_are_left_out_without_their_decoder(monkeypatch, capsys):
    monkeypatch.setattr(input.importlib.util, "find_spec", lambda name: None)
    arguments = argparse.Namespace(torch=None, turns=1, seconds=0.02, only="cameras", small=True)
    assert list(input.run(arguments)) == []
    assert "It needs simplejpeg: pip install simplejpeg" in capsys.readouterr().err
