"""Calls on storage have a timeout; their results and errors are passed on."""

import threading

import pytest

from engine.storage import background

LONG = 60.0


def test_bounded_returns_the_value_or_raises_the_error():
    assert background.bounded(lambda: 3, LONG) == 3
    with pytest.raises(ValueError, match="no"):
        background.bounded(lambda: int("no"), LONG)


def test_hanging_call_raises_storage_timeout_and_sets_hanging():
    go, call = threading.Event(), None
    try:
        with pytest.raises(background.StorageTimeout, match=r"no answer within 0\.1 s"):
            background.bounded(go.wait, 0.1)
        assert background.hanging()
        call = background.Background(go.wait, "second")
        assert not call.done
    finally:
        go.set()
    assert call.result(LONG) is True and call.done


def test_probe_creates_a_folder_and_raises_if_not_writable(tmp_path):
    background.probe(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        background.probe(tmp_path / "file" / "below")


def test_free_space_is_stated_or_why_it_is_unknown(tmp_path):
    assert background.free_space(tmp_path).endswith("B are free there")
    assert background.free_space(tmp_path / "none") == "the free space there is unknown (No such file or directory)"


def test_suspect_makes_library_threads_count_as_hanging(monkeypatch):
    monkeypatch.setattr(background, "_suspected", False)
    monkeypatch.setattr(background, "_threads", [])
    go = threading.Event()
    other = threading.Thread(target=go.wait, daemon=False)
    other.start()
    try:
        before = background.hanging()
        background.suspect()
        assert not before and background.hanging()
    finally:
        go.set()
        other.join()
