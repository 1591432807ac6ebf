import pytest

from engine.base.errors import DataError
from engine.ray.parts import open_parts


class Killed(Exception):
    pass


def test_parts_stay_after_an_error_and_go_with_a_complete_output(tmp_path):
    out = tmp_path / "out.npz"
    with pytest.raises(Killed), open_parts(out, "key") as parts:
        parts.save(3, {"x": 1})
        raise Killed
    with open_parts(out, "key") as parts:
        assert parts.load(3) == {"x": 1} and parts.load(0) is None
    assert not list(tmp_path.iterdir())


def test_damaged_part_and_parts_of_another_key_do_not_exist(tmp_path):
    out = tmp_path / "out.npz"
    with pytest.raises(Killed), open_parts(out, "key") as parts:
        parts.save(0, [1])
        parts.save(1, [2])
        raise Killed
    path = tmp_path / ".out.npz.parts" / "000000"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Killed), open_parts(out, "key") as parts:
        assert parts.load(0) is None and parts.load(1) == [2]
        raise Killed
    with open_parts(out, "another key") as parts:
        assert parts.load(1) is None


def test_second_command_on_the_same_output_is_refused(tmp_path):
    out = tmp_path / "out.npz"
    with (
        open_parts(out, "key"),
        pytest.raises(DataError, match="another process writes this file"),
        open_parts(out, "key"),
    ):
        pass


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"), open_parts(tmp_path / "file" / "out.npz", "key"):
        pass
