"""`launch` with small programs instead of a training, which tests/processes_test.py starts."""

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from engine.base.errors import ConfigError
from engine.launch.local import ProcessExit, in_order, launch
from engine.run import status
from tests import runs
from tests.launch.programs import alive, pids, wait_until_gone

pytestmark = pytest.mark.multiprocess

HEAD = """
import os, signal, subprocess, sys, time
from engine.cluster import verdict
me = int(os.environ["CONVOY_PROCESS_ID"])
"""


def start(program: str, *, processes: int = 2, grace_s: float = 0.3, before: str = "") -> subprocess.Popen[str]:
    """Starts a launcher process that runs a program in several processes, after a line of its own."""
    launcher = textwrap.dedent(f"""
        import sys
        {before}
        from engine.launch.local import launch
        command = [sys.executable, "-c", {HEAD + textwrap.dedent(program)!r}]
        sys.exit(launch(command, processes={processes}, devices=3, grace_s={grace_s}))
    """)
    return subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(program: str, **settings) -> tuple[int, list[str], list[str]]:
    """Returns the exit code, the sorted lines of standard output, and the lines of standard error."""
    process = start(program, **settings)
    output, errors = process.communicate(timeout=300)
    return process.returncode, sorted(output.splitlines()), errors.splitlines()


def test_each_process_gets_its_index_and_a_line_prefix():
    code, output, errors = run("""
        from engine.cluster.cluster_detection import detect
        process = detect().process
        devices = os.environ["JAX_NUM_CPU_DEVICES"], os.environ["JAX_PLATFORMS"]
        print(process.index, process.count, process.coordinator.split(":")[0], *devices)
        print("no newline", end="", file=sys.stderr)
    """)
    assert (code, output) == (0, ["[0] 0 2 127.0.0.1 3 cpu", "[1] 1 2 127.0.0.1 3 cpu"])
    assert sorted(errors) == ["[0] no newline", "[1] no newline"]


def test_all_processes_share_one_token_which_the_environment_may_set(monkeypatch):
    monkeypatch.delenv("CONVOY_RUN_TOKEN", raising=False)
    program = 'print(os.environ["CONVOY_RUN_TOKEN"])'
    one, other = ({line.split()[1] for line in run(program)[1]} for _ in range(2))
    assert len(one) == len(other) == 1 and one != other
    monkeypatch.setenv("CONVOY_RUN_TOKEN", "job-7")
    assert run(program)[1] == ["[0] job-7", "[1] job-7"]


def test_all_processes_get_the_same_coordinator_port():
    code, output, _ = run('print(os.environ["CONVOY_COORDINATOR"])', processes=3)
    assert code == 0
    assert len({line.split()[1] for line in output}) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux allows a reserved port")
def test_coordinator_port_is_reserved_for_process_0():
    code, output, errors = run(
        """
        import errno, socket
        address = ("127.0.0.1", int(os.environ["CONVOY_COORDINATOR"].rpartition(":")[2]))
        with socket.socket() as other:
            try:
                other.bind(address)
            except OSError as error:
                assert error.errno == errno.EADDRINUSE
                print("reserved", flush=True)
        socket.create_server(address).close()
        """,
        processes=1,
    )
    assert (code, output) == (0, ["[0] reserved"]), errors


@pytest.mark.parametrize(("own", "code"), [(1, 1), (43, 43), (42, 42), (130, 130)])
def test_first_failure_ends_all_processes_and_is_printed_last(own, code):
    returned, _, errors = run(f"""
        if me == 1:
            verdict.record({own}, "Traceback\\nKeyError: 'x'")
            sys.exit({own})
        time.sleep(3600)  # longer than run() waits
    """)
    assert returned == code
    assert errors[-2:] == ["[1] Traceback", "[1] KeyError: 'x'"]
    assert errors[-3].startswith(f"convoy launch: process 1 ended first, with {own} (")
    assert errors[-3].endswith("; then 0: 137")


def test_earliest_recorded_error_decides_the_exit_code():
    """Process 1 fails first, but process 0 exits before it."""
    code, _, errors = run(
        """
        from pathlib import Path
        folder = Path(os.environ[verdict.VARIABLE]).parent
        if me == 0:
            (folder / "new").write_text(str(os.getpid()))
            (folder / "new").rename(folder / "aborts")
            while not (folder / "1.json").exists():
                time.sleep(0.01)
            os.abort()
        verdict.record(1, "ConfigError: first")
        while not (folder / "aborts").exists() or os.path.exists(f"/proc/{(folder / 'aborts').read_text()}"):
            time.sleep(0.01)
        sys.exit(1)
        """,
        grace_s=60,
    )
    assert (code, errors[-1]) == (1, "[1] ConfigError: first")


def test_kill_decides_over_errors_that_it_caused():
    """The child of the killed process ends after the launcher has taken the time of the kill, as it ends the group."""
    code, _, errors = run(
        """
        from pathlib import Path
        from tests.launch.programs import alive
        folder = Path(os.environ[verdict.VARIABLE]).parent
        if me == 0:
            child = subprocess.Popen(["sleep", "3600"])
            (folder / "new").write_text(str(child.pid))
            (folder / "new").rename(folder / "child")
            os.kill(os.getpid(), signal.SIGKILL)
        while not (folder / "child").exists() or alive(int((folder / "child").read_text())):
            time.sleep(0.01)
        verdict.record(1, "RuntimeError: my peer is gone")
        sys.exit(1)
        """,
        grace_s=60,
    )
    (line,) = errors
    assert code == 137
    assert line.startswith("convoy launch: process 0 ended first, with 137 (killed by SIGKILL")
    assert "memory ran out" in line and line.endswith("; then 1: 1")


def test_kill_comes_before_the_verdicts_about_a_lost_peer_that_were_recorded_first():
    """Also under load, where the launcher notices the kill late. Process 4 was killed by the launcher."""
    codes = {0: (42, 3.0), 1: (137, 5.0), 2: (1, 4.0), 3: (0, 1.0), 4: (137, 9.0), 5: (139, 6.0)}
    exits = [ProcessExit(i, code, when, pid=i) for i, (code, when) in codes.items()]

    def order(unexplained: list[int], blaming: list[int]) -> list[int]:
        return [ended.index for ended in in_order(exits, unexplained, blaming)]

    assert order([1, 5], [0]) == [1, 5, 0, 2, 4, 3]
    assert order([1, 5], []) == [0, 2, 1, 5, 4, 3]  # the verdict of process 0 is its own, such as that of a hang
    assert order([3], [0]) == [0, 2, 1, 5, 4, 3]


def test_process_that_is_killed_is_named_although_its_peer_recorded_the_loss_first():
    code, _, errors = run(
        """
        from engine.cluster.peer_failure import LostPeer
        if me == 1:
            verdict.report(LostPeer("process 0 is gone."))
            sys.exit(42)
        while not verdict.read_peers():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        grace_s=60,
    )
    assert code == 137
    assert errors[0].startswith("convoy launch: process 0 ended first, with 137 (killed by SIGKILL")
    assert errors[0].endswith("; then 1: 42")


def test_status_of_a_killed_process_is_corrected(tmp_path):
    code, _, _ = run(f"""
        from pathlib import Path
        from engine.run import status
        if me == 0:
            path = Path({str(tmp_path)!r}) / "status.json"
            verdict.record_status_path(path)
            status.write(path, status.Status(state="training", step=7))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    """)
    found = status.read(tmp_path / "status.json")
    assert (code, found.state, found.step, found.exit_code) == (137, "failed", 7, 137)
    assert found.reason.startswith("process 0 ended first, with 137 (killed by SIGKILL")


def test_exit_code_0_of_a_process_that_was_not_done_is_not_believed(tmp_path):
    """Such as after `os._exit(0)` in the user's code, while another process waits for the run's end."""
    code, _, errors = run(f"""
        from pathlib import Path
        from engine.run import status
        verdict.begin()
        if me == 1:
            path = Path({str(tmp_path)!r}) / "status.json"
            verdict.record_status_path(path)
            status.write(path, status.Status(state="training", step=7))
            os._exit(0)
        verdict.done()
    """)
    found = status.read(tmp_path / "status.json")
    assert (code, found.state, found.step, found.exit_code) == (1, "failed", 7, 1)
    assert found.reason.startswith("process 1 ended with exit code 0 before it was done: ")
    assert errors[-1] == f"[1] {found.reason}"


@pytest.mark.parametrize("early", [0, 1])
def test_process_that_ends_with_0_before_the_rendezvous_ends_the_job_at_once(early):
    """Nothing of the engine has begun in it, so only the launcher knows of its end, and only the others need it."""
    begin = time.monotonic()
    code, _, errors = run(
        f"""
        from engine.cluster import rendezvous
        from engine.cluster.cluster_detection import address, detect
        if me == {early}:
            sys.exit(0)
        verdict.begin()
        process = detect().process
        endpoint = rendezvous.Endpoint(process.coordinator, *address("", process.coordinator))
        try:
            rendezvous.wait_for_all(me, process.count, endpoint, 20.0)
        except rendezvous.CannotJoin as error:
            verdict.report(error)
            sys.exit(error.exit_code)
        """,
        processes=3,
        grace_s=60,
    )
    assert time.monotonic() - begin < runs.limit(15)
    assert code == 1
    text = f"process {early} ended with exit code 0 before joining the others, which waited for it."
    assert errors[-1].startswith(f"[{early}] {text}")
    assert errors[-2].startswith(f"convoy launch: process {early} ended first, with 1 (")
    others = [part.split(": ") for part in errors[-2].rpartition("; then ")[2].split(", ")]
    assert sorted(index for index, _ in others) == [str(index) for index in range(3) if index != early]
    assert {code for _, code in others} <= {"1", "42"}  # 42: process 0 was gone before it told its reason


def test_process_that_ends_with_0_in_the_middle_ends_the_job_and_each_process_is_listed():
    code, _, errors = run(
        """
        if me == 2:
            sys.exit(0)
        verdict.begin()
        if me == 1:
            os._exit(0)
        time.sleep(3600)  # longer than run() waits
    """,
        processes=3,
    )
    assert code == 1
    assert errors[-2].startswith("convoy launch: process 1 ended first, with 1 (")
    assert errors[-2].endswith("; then 0: 137; with 0: 2")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells which processes are stopped")
def test_stopped_process_is_named_and_then_ended_also_behind_a_shell():
    """tests/launch/stopped_test.py has the other cases."""
    code, output, errors = run(
        """
        if me == 1 and not os.environ.get("INNER"):
            inner = "import os, signal; from engine.cluster import verdict; verdict.begin(); "
            inner += "print('pid', os.getpid(), flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
            sys.exit(subprocess.run([sys.executable, "-c", inner], env=os.environ | {"INNER": "1"}).returncode and 1)
        time.sleep(3600)  # longer than run() waits
        """,
        before="from engine.launch import timeouts; timeouts.STOPPED_NAMED_S, timeouts.STOPPED_S = 0.5, 1.5",
    )
    (pid,) = [int(line.split()[2]) for line in output if line.startswith("[1] pid ")]
    assert code == 42
    assert errors[0].startswith(f"convoy launch: process 1 (pid {pid}) has been stopped by a signal, such as SIGSTOP,")
    assert errors[-2] == "convoy launch: process 1 ended first, with 42 (start it again); then 0: 137"
    assert errors[-1].startswith(f"[1] process 1 (pid {pid}) was stopped by a signal for ")


@pytest.mark.parametrize(("state", "code"), [("training", 1), ("done", 0)])
def test_status_of_the_run_decides_whether_exit_code_0_is_believed(tmp_path, state, code):
    ended, _, errors = run(
        f"""
        from pathlib import Path
        from engine.run import status
        path = Path({str(tmp_path)!r}) / "status.json"
        verdict.record_status_path(path)
        status.write(path, status.Status(state={state!r}, step=7))
        """,
        processes=1,
    )
    assert ended == code
    assert [line for line in errors if f"the status of its run is {state}" in line] == errors[1:]


def test_output_that_goes_away_does_not_end_the_processes(tmp_path):
    (tmp_path / "status.json").touch()
    program = f"""
        from pathlib import Path
        verdict.record_status_path(Path({str(tmp_path)!r}) / "status.json")
        for _ in range(100):
            print("x" * 1000)
        time.sleep(0.5)
        Path({str(tmp_path)!r}, f"{{me}}").touch()
    """
    launcher = textwrap.dedent(f"""
        import sys
        from engine.cluster import output
        from engine.launch.local import launch
        output.guard()
        command = [sys.executable, "-c", {HEAD + textwrap.dedent(program)!r}]
        sys.exit(launch(command, processes=2))
    """)
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", launcher], stdout=full, stderr=subprocess.PIPE, timeout=180)
    assert (done.returncode, done.stderr) == (0, b"") and {"0", "1"} <= {path.name for path in tmp_path.iterdir()}
    text = "the launcher: standard output cannot be written (No space left on device); it stays silent from here on."
    assert text in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_signals_are_forwarded_to_the_processes(number, code):
    process = start("""
        def stop(number, frame):
            sys.exit({signal.SIGTERM: 42, signal.SIGINT: 130}[number])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        print("ready", flush=True)
        time.sleep(60)
    """)
    assert process.stdout is not None
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors


WORKER = """
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(os.getpid(), worker.pid, flush=True)
"""


def test_failed_launch_leaves_no_child_process():
    program = """
    from pathlib import Path
    shown = Path(os.environ[verdict.VARIABLE]).with_name("shown")
    if me == 0:
        while not shown.exists():
            time.sleep(0.01)
        sys.exit(1)
    shown.touch()
    time.sleep(60)
    """
    code, output, _ = run(WORKER + program)
    assert code == 1
    assert len(pids(output)) == 4
    wait_until_gone(pids(output))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only the Linux kernel kills the children")
def test_killed_launcher_leaves_no_process():
    process = start('print("is", os.getpid(), flush=True)\ntime.sleep(60)')
    assert process.stdout is not None
    started = [int(process.stdout.readline().split()[2]) for _ in range(2)]
    assert all(map(alive, started))
    process.kill()
    process.communicate()
    wait_until_gone(started)


@pytest.mark.parametrize(
    ("name", "settings"), [("processes", {"processes": 0}), ("devices-per-process", {"devices": 0})]
)
def test_number_below_one_is_a_config_error(name, settings):
    with pytest.raises(ConfigError, match=f"--{name} = 0: allowed is a whole number from 1"):
        launch(["true"], **{"processes": 2, **settings})


def test_launch_restores_signal_handlers():
    program = """
        import os, signal
        from engine.launch.local import launch
        handlers = lambda: [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        before = handlers()
        assert launch(["true"], processes=1) == 0
        assert handlers() == before
        assert "CONVOY_PROCESS_ID" not in os.environ
    """
    # In a new process: where JAX has started threads, launch() would fork them.
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
