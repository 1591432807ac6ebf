"""Folders of code that only their user may change."""

import os

import pytest

from engine.base.errors import ConfigError
from engine.compile.trusted_folder import check_trusted, read_trusted


@pytest.mark.parametrize(("mode", "trusted"), [(0o700, True), (0o755, True), (0o775, False), (0o707, False)])
def test_folder_is_trusted_if_only_its_owner_may_write(tmp_path, mode, trusted):
    tmp_path.chmod(mode)
    if trusted:
        check_trusted(tmp_path)
        return
    with pytest.raises(ConfigError, match=rf"may write to it \(mode {mode:o}\).*chmod go-w"):
        check_trusted(tmp_path)


def test_folder_and_file_of_another_user_are_not_trusted(tmp_path, monkeypatch):
    path = tmp_path / "program"
    path.write_bytes(b"code")
    assert read_trusted(path) == b"code"
    user = os.getuid()
    if user == 0:  # the superuser's own folders are always trusted
        try:
            for each in (tmp_path, path):
                os.chown(each, 12345, -1)
        except OSError as error:  # a user namespace, as in the sandbox of Bazel, may have one user
            pytest.skip(f"this system has no other user: {error}")
    else:
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(ConfigError, match=r"it belongs to user \d+, and this process runs as user \d+. Whoever"):
        check_trusted(tmp_path)
    with pytest.raises(ConfigError, match=r"it belongs to user"):
        read_trusted(path)
