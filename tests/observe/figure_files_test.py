"""Images with a file name are written as PNG files."""

import errno
import os

import numpy as np
import pytest

from engine.base import host
from engine.metrics.results import File, Image
from engine.observe.figure_files import write_figures
from tests.observe.images import decode


def test_only_images_with_a_file_name_are_written(tmp_path):
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    write_figures(tmp_path / "figures", {"a": Image(pixels), "b": Image(pixels, "night/7.png"), "c": 1.0})
    [file] = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert file == tmp_path / "figures" / "night" / "7.png"
    np.testing.assert_array_equal(decode(file.read_bytes()), pixels)


def test_figures_replace_those_of_an_earlier_evaluation_of_the_step(tmp_path):
    def names():
        return sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())

    one, two = np.zeros((2, 2)), np.ones((2, 2))
    write_figures(tmp_path, {str(i): Image(one, f"test/7/{i}-example-{10 + i}.png") for i in range(3)})
    write_figures(tmp_path, {"a": Image(one, "test/8/0-example-4.png"), "b": Image(one, "test/7/own.png")})
    killed = host.process_mark().rpartition("-")[0]  # without the time of its start, 0 stands for another one
    (tmp_path / "test" / "7" / f".2-example-5.png.{killed}-0-1.tmp").write_bytes(b"half")
    write_figures(tmp_path, {"a": Image(two, "test/7/0-example-10.png"), "loss": 1.0})
    assert names() == ["test/7/0-example-10.png", "test/7/own.png", "test/8/0-example-4.png"]
    assert decode((tmp_path / "test/7/0-example-10.png").read_bytes()).max() == 255
    write_figures(tmp_path, {"other/loss": 1.0, "loss": 1.0}, 7)
    write_figures(tmp_path / "none", {"test/loss": 1.0}, 7)
    assert len(names()) == 3 and not (tmp_path / "none").exists()
    write_figures(tmp_path, {"test/loss": 1.0}, 7)  # of an evaluation that has drawn no figure
    assert names() == ["test/7/own.png", "test/8/0-example-4.png"]


def test_metrics_of_examples_are_kept_with_their_checkpoints_and_of_the_latest_two_steps(tmp_path):
    """The checkpoints of the latest steps may still be being written, also by another process."""
    folder = tmp_path / "per_example" / "test"

    def names():
        return sorted(path.name for path in folder.iterdir())

    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    for step in (10, 20, 30, 40):
        write_figures(tmp_path / "figures", {"a": File(f"per_example/test/{step}.parquet", b"a")}, step)
    (folder / "own.parquet").touch()
    assert names() == ["20.parquet", "30.parquet", "40.parquet", "own.parquet"]
    write_figures(tmp_path / "figures", {"a": File("per_example/test/10.parquet", b"a")}, 10)  # by convoy evaluate
    assert names() == ["10.parquet", "20.parquet", "30.parquet", "40.parquet", "own.parquet"]


def test_figure_that_cannot_be_written_keeps_the_old_one(tmp_path, monkeypatch):
    write_figures(tmp_path, {"a": Image(b"\x89PNG old", "a.png")})

    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_figures(tmp_path, {"a": Image(b"\x89PNG new, longer", "a.png")})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"\x89PNG old"
