"""Stack traces of this thread and of a thread that waits in the user's code."""

import threading

import pytest

from engine.loop import stacks


@pytest.fixture
def waiting():
    """A thread in a function of this file, which counts as the user's code."""
    done, ready = threading.Event(), threading.Event()

    def wait_in_user_code():
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait_in_user_code, name="loader")
    thread.start()
    ready.wait()
    yield
    done.set()
    thread.join()


def test_dump_writes_stacks_and_names_of_all_threads(tmp_path, waiting):
    file = stacks.dump(tmp_path / "stacks/1.txt")
    assert file == tmp_path / "stacks/1.txt"
    text = (tmp_path / "stacks/1.txt").read_text()
    assert "wait_in_user_code" in text and "test_dump_writes_stacks" in text
    assert "MainThread" in text.splitlines()[0] and "loader" in text.splitlines()[0]


def test_dump_to_an_unwritable_folder_returns_none(tmp_path):
    (tmp_path / "file").write_text("")
    assert stacks.dump(tmp_path / "file/1.txt") is None


def test_main_thread_returns_its_innermost_frames():
    text = stacks.main_thread()
    assert text.startswith("Main thread, innermost call last:\n")
    assert "test_main_thread_returns" in text
    assert text.count("  File ") == stacks.FRAMES


def test_where_names_the_main_thread_and_threads_in_user_code(waiting):
    main, other = stacks.where().split(", thread ")
    assert "stacks_test.py:" in main and " in test_where_names_the_main_thread" in main
    assert other.startswith("loader ") and other.endswith(" in wait_in_user_code")
