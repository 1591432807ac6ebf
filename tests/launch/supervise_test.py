"""`supervise` with small programs instead of a training, which tests/faults/supervisor_test.py starts."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from engine.launch.local import ProcessExit
from engine.launch.supervise import AnnouncedKills
from engine.run import status
from engine.run.directory import RunDirectory
from engine.run.status import Status
from tests.launch.programs import pids, wait_until_gone

pytestmark = pytest.mark.multiprocess

HEAD = """
import os, signal, subprocess, sys, time
from pathlib import Path
from engine.cluster import verdict
run = Path(sys.argv[1])
run.mkdir(exist_ok=True)
with open(run.parent / "attempts", "a") as file:
    print(*sys.argv[2:], os.environ["CONVOY_RUN_TOKEN"], file=file)
attempt = len((run.parent / "attempts").read_text().splitlines())
def checkpoint(step):
    (run / f"checkpoints/{step}").mkdir(parents=True)
    (run / f"checkpoints/{step}/manifest.json").touch()
def die(number):
    os.kill(os.getpid(), number)
"""


def start(
    folder: Path,
    program: str,
    *words: str,
    settings: str = "",
    first_wait_s: float = 0.01,
    prefix: tuple[str, ...] = (),
    **env: str,
) -> subprocess.Popen[str]:
    """Starts a supervisor process for a program, with the arguments `words`; `prefix` is a command that runs it."""
    supervisor = textwrap.dedent(f"""
        import sys
        from engine.launch.supervise import supervise
        from engine.run.directory import RunDirectory
        run = RunDirectory({str(folder / "run")!r})
        command = [sys.executable, "-c", {HEAD + textwrap.dedent(program)!r}, str(run), *{words!r}]
        sys.exit(supervise(command, run, first_wait_s={first_wait_s}, {settings}))
    """)
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", supervisor],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


def supervised(folder: Path, program: str, *words: str, **settings) -> tuple[int, list[str]]:
    """Returns the exit code and the lines of standard error."""
    process = start(folder, program, *words, **settings)
    _, errors = process.communicate(timeout=180)
    return process.returncode, errors.splitlines()


def attempts(folder: Path) -> list[str]:
    return (folder / "attempts").read_text().splitlines()


def test_run_is_restarted_until_done_and_each_restart_is_reported(tmp_path):
    code, errors = supervised(
        tmp_path,
        """
        verdict.step_counter()[0] = attempt * 10
        if attempt == 1:
            die(signal.SIGKILL)
        if attempt == 2:
            checkpoint(20)
            verdict.record(42, "Hang: step 21 takes for ever", "Hang")
            sys.exit(42)
        """,
    )
    assert code == 0
    assert errors == [
        "convoy supervise: ended at step 10 with 137 (killed by SIGKILL; if nobody sent the signal, memory ran out: "
        "see the kernel log (dmesg)). Restart 1 in 0.01 s, from the beginning.",
        "Hang: step 21 takes for ever",
        "convoy supervise: ended at step 20 with 42 (Hang: step 21 takes for ever). Restart 2 in 0.01 s, from step 20.",
    ]
    assert len(attempts(tmp_path)) == 3
    assert len(set(attempts(tmp_path))) == 1, "all attempts share one token"
    log = [line.split(" ", 1)[1] for line in (tmp_path / "run/log.txt").read_text().splitlines()]
    assert log == [line for line in errors if line.startswith("convoy supervise: ")]


@pytest.mark.parametrize("code", [1, 43, 130, 5])
def test_final_exit_code_is_not_restarted(tmp_path, code):
    returned, errors = supervised(tmp_path, f"verdict.record({code}, 'ConfigError: no')\nsys.exit({code})")
    assert (returned, errors, len(attempts(tmp_path))) == (code, ["ConfigError: no"], 1)


def test_signal_that_is_not_restarted_is_named_with_its_usual_cause(tmp_path):
    returned, errors = supervised(tmp_path, "os.kill(os.getpid(), signal.SIGBUS)")
    assert (returned, len(attempts(tmp_path))) == (128 + signal.SIGBUS, 1)
    assert errors[-1].startswith(
        "convoy supervise: ended with 135: killed by SIGBUS: usually a file that is mapped into"
    )


def test_first_failure_of_several_processes_decides(tmp_path):
    program = """
        if os.environ["CONVOY_PROCESS_ID"] == "1":
            while len((run.parent / "attempts").read_text().splitlines()) % 2:  # process 0 has not started yet
                time.sleep(0.01)
            verdict.step_counter()[0] = attempt
            die(signal.SIGKILL) if attempt < 3 else sys.exit(0)  # two processes count an attempt twice
        time.sleep(0 if attempt > 2 else 60)
    """
    code, errors = supervised(tmp_path, program, settings="processes=2")
    assert code == 0
    reported = [line for line in errors if line.startswith("convoy supervise: ")]
    assert len(reported) == 1
    assert "with 137 of process 1 (killed by SIGKILL; if nobody sent the signal, memory ran out" in reported[0]


def test_crash_loop_stops_and_is_written_to_the_status(tmp_path):
    (tmp_path / "run").mkdir()
    status.write(tmp_path / "run/status.json", Status(state="training", step=7, attempt=3))
    code, errors = supervised(tmp_path, "verdict.step_counter()[0] = 7\ndie(signal.SIGSEGV)")
    assert code == 43
    assert len(attempts(tmp_path)) == 3
    assert errors[-1].startswith(
        "convoy supervise: 3 attempts failed identically at step 7: killed by SIGSEGV; no new "
    )
    ended = status.read(tmp_path / "run/status.json")
    assert (ended.state, ended.exit_code, ended.step, ended.attempt) == ("failed", 43, 7, 3)
    assert errors[-1] == f"convoy supervise: {ended.reason}"


LIMIT = 1 << 30  # bytes, for the supervisor and its program


@pytest.fixture
def limited(tmp_path):
    """A command prefix that starts a program in a control group with little memory."""
    group = Path("/sys/fs/cgroup/memory") / f"convoy-supervise-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"no control group can be created here: {error}")
    yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
    end = time.monotonic() + 30
    while (group / "cgroup.procs").read_text() and time.monotonic() < end:
        time.sleep(0.1)
    group.rmdir()


def test_two_kills_by_the_kernel_for_lack_of_memory_are_a_crash_loop(tmp_path, limited):
    program = """
        verdict.step_counter()[0] = 7
        taken = [bytearray(os.urandom(1) * (64 << 20)) for _ in range(64)]
    """
    code, errors = supervised(tmp_path, program, prefix=limited)
    assert (code, len(attempts(tmp_path))) == (43, 2), errors
    assert "ended at step 7 with 137 (killed by SIGKILL: the kernel reports that memory ran out" in errors[0]
    assert errors[-1].startswith(
        "convoy supervise: 2 attempts failed identically at step 7: the kernel killed a process for lack of memory, of "
        "which there are 1.0 GiB (the limit of this container); no new checkpoint was saved"
    )


def test_same_error_at_the_same_step_is_a_crash_loop(tmp_path):
    program = """
        verdict.step_counter()[0] = 7
        where = "Hang at mine.py:3 in read" if attempt != 2 else "Hang at other.py:1 in f"
        verdict.record(42, "Hang: the loader", where)
        sys.exit(42)
    """
    code, errors = supervised(tmp_path, program)
    assert code == 43
    assert len(attempts(tmp_path)) == 4
    assert "identically at step 7: Hang at mine.py:3 in read;" in errors[-1]


def test_announced_kills_do_not_count_as_a_crash_loop(tmp_path):
    kills = tmp_path / "kills"
    program = """
        if attempt < 6:
            with open(os.environ["CONVOY_KILLED_FROM_OUTSIDE"], "a") as file:
                print(os.getpid(), file=file)
            die(signal.SIGKILL)
    """
    code, errors = supervised(tmp_path, program, CONVOY_KILLED_FROM_OUTSIDE=str(kills))
    assert code == 0
    assert len(errors) == 5
    assert all(", from outside (killed by SIGKILL). Restart" in line and " in 0.01 s" in line for line in errors)


def test_announced_pid_counts_once_and_only_for_its_process(tmp_path):
    file = tmp_path / "kills"
    file.write_text("7 8\n")
    kills, exits = AnnouncedKills(file), [ProcessExit(0, 137, 0.0, pid=7), ProcessExit(1, 134, 0.0, pid=9)]
    assert not kills.include(exits), "announced before the first attempt"
    file.write_text("7 8\n77\n1\n")
    assert not kills.include(exits), "of other processes"
    file.write_text("7 8\n77\n1\n9\n")
    assert kills.include(exits)
    assert not kills.include(exits), "counted before"
    assert not AnnouncedKills(None).include(exits)
    assert not AnnouncedKills(tmp_path / "missing").include(exits)


def test_restarts_stop_at_the_limit(tmp_path):
    code, errors = supervised(
        tmp_path, "verdict.step_counter()[0] = attempt * 10\ndie(signal.SIGKILL)", settings="restarts=1"
    )
    assert (code, len(attempts(tmp_path))) == (137, 2)
    assert errors[-1] == "convoy supervise: the maximum number of restarts (1) is reached."


STOPS = """
    def stop(number, frame):
        sys.exit({signal.SIGTERM: 42, signal.SIGINT: 130}[number])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print("is", os.getpid(), worker.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_signal_is_forwarded_and_prevents_a_restart(tmp_path, number, code):
    process = start(tmp_path, STOPS)
    assert process.stdout is not None
    started = pids([process.stdout.readline()])
    process.send_signal(number)
    _, errors = process.communicate(timeout=180)
    assert (process.returncode, errors) == (code, "")
    assert len(attempts(tmp_path)) == 1
    wait_until_gone(started)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_signal_during_the_wait_ends_supervise(tmp_path, number, code):
    process = start(tmp_path, "die(signal.SIGKILL)", first_wait_s=60)
    assert process.stderr is not None
    assert "Restart 1 in 60 s" in process.stderr.readline()
    process.send_signal(number)
    process.communicate(timeout=180)
    assert process.returncode == code


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only the Linux kernel kills the children")
def test_killed_supervisor_leaves_no_process(tmp_path):
    process = start(tmp_path, 'print("is", os.getpid(), flush=True)\ntime.sleep(60)')
    assert process.stdout is not None
    started = pids([process.stdout.readline()])
    process.kill()
    process.communicate()
    wait_until_gone(started)


FRESH = """
    if "--fresh" in sys.argv:
        moved = run.with_name("run.old-1")
        run.rename(moved)
        run.mkdir()
    (run / "config.txt").touch()
    if attempt < 4:
        die(signal.SIGKILL)
"""


def test_fresh_moves_an_earlier_run_aside_once(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.txt").write_text("old")
    killed_first = (
        "verdict.step_counter()[0] = 9 * attempt\nif attempt == 1:\n    die(signal.SIGKILL)\n" + textwrap.dedent(FRESH)
    )
    assert supervised(tmp_path, killed_first, "--fresh")[0] == 0
    flags = [line.split()[:-1] for line in attempts(tmp_path)]
    assert flags == [["--fresh"], ["--fresh"], [], []]
    assert (tmp_path / "run.old-1/config.txt").read_text() == "old"


def test_fresh_replaces_a_start_without_steps_once(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    status.write(run.status, status.Status(state="failed"))
    killed = """
    import dataclasses
    from engine.run import status
    file = run / "status.json"
    if attempt == 2:
        status.write(file, status.Status(state="training", step=9))
    verdict.step_counter()[0] = 9 * attempt
    if attempt < 4:
        die(signal.SIGKILL)
    """
    assert supervised(tmp_path, textwrap.dedent(killed), "--fresh")[0] == 0
    flags = [line.split()[:-1] for line in attempts(tmp_path)]
    assert flags == [["--fresh"], ["--fresh"], [], []]


def test_fresh_without_an_earlier_run_moves_nothing(tmp_path):
    (tmp_path / "run").mkdir()
    assert supervised(tmp_path, "", "--fresh")[0] == 0
    assert [line.split()[:-1] for line in attempts(tmp_path)] == [[]]


def test_existing_token_is_kept(tmp_path):
    assert supervised(tmp_path, "", CONVOY_RUN_TOKEN="mine")[0] == 0
    assert attempts(tmp_path) == ["mine"]
