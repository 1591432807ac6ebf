"""Where every thread is: this thread and one that waits in code of the user's."""

import threading

import pytest

from engine.resilience import stacks


@pytest.fixture
def waiting():
    """A thread of this file's, which counts as the user's code."""
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


def test_the_file_has_the_stacks_of_all_threads_and_their_names(tmp_path, waiting):
    file = stacks.dump(tmp_path / "stacks/1.txt")
    assert file == tmp_path / "stacks/1.txt"
    text = (tmp_path / "stacks/1.txt").read_text()
    assert "wait_in_user_code" in text and "test_the_file_has" in text
    assert "MainThread" in text.splitlines()[0] and "loader" in text.splitlines()[0]


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert stacks.dump(tmp_path / "file/1.txt") is None


def test_the_main_thread_is_shown_with_its_innermost_frames():
    text = stacks.main_thread()
    assert text.startswith("Main thread, innermost call last:\n")
    assert "test_the_main_thread_is_shown" in text
    assert text.count("  File ") == stacks.FRAMES


def test_a_line_says_where_the_main_thread_is_and_who_runs_the_users_code(waiting):
    main, other = stacks.where().split(", thread ")
    assert "stacks_test.py:" in main and " in test_a_line_says_where" in main
    assert other.startswith("loader ") and other.endswith(" in wait_in_user_code")
