import bz2
import math
import sysconfig
import types
from typing import cast

import numpy as np
import pytest

from convoy_zoo.models.stdlib_text import VOCABULARY, Files, Scale, StdlibText, bz2_nats_per_byte, validation_bytes
from engine import DataError
from engine.base.errors import ConfigError
from engine.config.schema import Data
from engine.config.target import check


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A fake standard library of 200 small modules, with folders that must be excluded."""
    names = [f"module_{number}.py" for number in range(190)] + [f"package/part_{number}.py" for number in range(10)]
    names += ["test/a.py", "package/tests/b.py", "site-packages/c.py", "package/data.txt", "_sysconfigdata_x.py"]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n" * 5)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def test_every_library_file_is_in_exactly_one_split(library):
    train, validation = Files("train"), Files("validation")
    assert train.paths == sorted(train.paths)
    expected = {
        path.relative_to(library).as_posix()
        for pattern in ("module*", "package/part*")
        for path in library.glob(pattern)
    }
    assert {*train.paths, *validation.paths} == expected
    assert not set(train.paths) & set(validation.paths)
    assert 4 <= len(validation) <= 24


def test_split_of_a_file_does_not_depend_on_other_files(library):
    before = Files("validation").paths
    for number in range(50):
        (library / f"later_{number}.py").write_text("x = 1\n")
    assert [path for path in Files("validation").paths if not path.startswith("later")] == before


def test_documents_are_the_bytes_of_the_files(library):
    files = Files()
    for index in (0, 7, len(files) - 1):
        assert files[index]["tokens"].tobytes() == (library / files.paths[index]).read_bytes()
    assert files.lengths().tolist() == [len(files[index]["tokens"]) for index in range(len(files))]


def test_an_evaluation_reads_the_validation_bytes_in_order(library):
    source = StdlibText("validation", length=64)
    rows = source.take(np.arange(len(source)))
    tokens = rows["tokens"][rows["segment_ids"] > 0]
    assert tokens.astype(np.uint8).tobytes() == validation_bytes()
    assert rows["weight"].sum() == len(validation_bytes()) - len(
        source.documents
    )  # all bytes but the first of each file


def test_bzip2_reference_is_nats_per_byte():
    assert bz2_nats_per_byte(b"a" * 10_000) == 8 * math.log(2) * len(bz2.compress(b"a" * 10_000, 9)) / 10_000
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    assert bz2_nats_per_byte(noise) == pytest.approx(math.log(256), rel=0.02)


def test_standard_library_of_this_python_is_found():
    source = StdlibText("validation")
    assert "abc.py" in [*Files().paths, *cast(Files, source.documents).paths]
    assert source.lengths.sum() > 100_000
    assert source[0]["tokens"].shape == (256,)
    assert source[0]["tokens"].max() < VOCABULARY
    assert 0.5 < bz2_nats_per_byte(validation_bytes()) < 2


def test_unknown_split_and_python_without_sources_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"data.split: found 'test', .* takes 'train' or 'validation'"):
        check(Data(target="convoy_zoo.models.stdlib_text.StdlibText", arguments={"split": "test"}), "data")
    with pytest.raises(DataError, match=r"split = 'test': allowed are train and validation"):
        StdlibText("test")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match=r"no .py files for train. Use a Python whose standard library is inst"):
        StdlibText()


def test_hook_prints_the_loss_next_to_bzip2(library):
    said = []
    trainer = types.SimpleNamespace(
        say=said.append, summary=lambda: types.SimpleNamespace(metrics={"validation/nats": 1.25})
    )
    Scale("validation/nats").run(trainer, None, 7)
    assert f"step 7: validation 1.2500 nats a byte; bzip2 -9 {bz2_nats_per_byte(validation_bytes()):.4f}" in said[0]
