"""The actor without Ray, which launch_test.py has: a process, its news, and its end."""

import signal
import time
from pathlib import Path

import pytest

from engine.ray.process import Command, News, RemoteProcess
from tests.launch.programs import wait_until_gone

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.filterwarnings("ignore:.*fork"),  # of JAX, if another test has imported it
]


def started(tmp_path: Path, program: str, cwd: str = "", processes: int | None = 4) -> RemoteProcess:
    process = RemoteProcess(2)
    port = process.reserve("127.0.0.1")
    words = ["-c", f"import os, signal, sys, time\n{program}"]
    process.start(Command(words, {"MINE": "1"}, cwd or str(tmp_path), processes, f"127.0.0.1:{port}", "token"))
    return process


def until(process: RemoteProcess, text: str) -> tuple[list[tuple[bool, str]], News]:
    """Returns the output until a text, or the end, and the latest news."""
    texts: list[tuple[bool, str]] = []
    end = time.monotonic() + 60
    while True:
        news = process.news()
        texts += news.texts
        if news.outcome is not None or any(text in found for _, found in texts):
            return texts, news
        assert time.monotonic() < end


def test_process_gets_its_place_in_the_job_and_its_output_arrives_before_its_end(tmp_path, monkeypatch):
    monkeypatch.delenv("CONVOY_RUN_TOKEN", raising=False)  # of a launcher in this process
    names = ("CONVOY_PROCESS_ID", "CONVOY_NUM_PROCESSES", "CONVOY_RUN_TOKEN", "MINE")
    process = started(tmp_path, f"print(*map(os.environ.get, {names}), flush=True); sys.exit(43)")
    texts, news = until(process, "never")
    assert texts == [(True, "[2] 2 4 token 1\n")]
    assert news.outcome is not None and news.now <= time.monotonic()
    [ended] = news.outcome.exits
    assert (ended.index, ended.code, ended.pid) == (2, 43, news.pid)


def test_single_process_detects_its_cluster(tmp_path):
    texts, _ = until(started(tmp_path, "print(os.environ.get('CONVOY_PROCESS_ID'))", processes=None), "never")
    assert texts == [(True, "[2] None\n")]


def test_signals_and_kills_reach_the_process(tmp_path):
    process = started(tmp_path, "signal.signal(2, lambda *_: print('two', flush=True)); print('one', flush=True)\n"
                                "while True: time.sleep(1)")  # fmt: skip
    until(process, "one")
    process.signal(signal.SIGINT)
    _, news = until(process, "two")
    assert news.outcome is None
    process.kill()
    _, news = until(process, "never")
    assert news.outcome is not None and news.outcome.exits[0].code == 137 and not news.outcome.unexplained
    wait_until_gone([news.pid])


def test_folder_that_the_node_does_not_see_is_one_sentence(tmp_path):
    _, news = until(started(tmp_path, "", cwd=str(tmp_path / "missing")), "never")
    assert news.outcome is not None
    [ended] = news.outcome.exits
    assert ended.code == 1 and "No such file or directory" in ended.text
    assert ended.text.endswith("All nodes must see the folder in which it is started.")


def test_output_that_nobody_fetches_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.ray.process._LARGEST", 1000)
    process = started(tmp_path, "for _ in range(4000): print('a' * 99)\nsys.stdout.flush(); open('last', 'w')")
    end = time.monotonic() + 60
    while not (tmp_path / "last").exists():  # nobody asks for news until then
        assert time.monotonic() < end
        time.sleep(0.01)
    kept = dropped = 0
    while True:
        news = process.news()
        kept, dropped = kept + sum(len(text) for _, text in news.texts), dropped + news.dropped
        if news.outcome is not None:
            break
    assert kept + dropped == 4000 * 104 and dropped > 100_000
