"""Real signals to real processes: what the loop polls, and the exit code of the process."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from engine.loop.preemption import Interrupted, Preempted, Preemption, start_ended_by_sigterm
from engine.loop.timeouts import SAME_SIGNAL_S
from tests import runs

LOOP = """
    import os, signal, sys, time
    import jax
    from engine.loop.preemption import Interrupted, Preempted, Preemption

    def loop():
        with Preemption() as preemption:
            print("ready", flush=True)
            for step in range(10**9):
                if preemption.requested():
                    print(f"stopped at {step}", flush=True)
                    raise (Interrupted if preemption.interrupted else Preempted)(f"step {step}")
                time.sleep(0.005)
"""
RUN = """
    try:
        loop()
    except (Preempted, Interrupted) as error:
        sys.exit(error.exit_code)
"""


def start(program: str, *arguments: str) -> runs.Started:
    command = [sys.executable, "-c", textwrap.dedent(LOOP) + textwrap.dedent(program), *arguments]
    return runs.begin(command, None, runs.environment(), apart=True)


def wait_for(process: runs.Started, line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.strip() == line:
            return
    pytest.fail(f"no line {line!r}: {process.communicate()[1]}")


def end(process: runs.Started) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=180)
    own = runs.without_gloo(output)
    return process.wait(), "".join(f"{line}\n" for line in own), errors


@pytest.fixture(autouse=True)
def check_handlers_are_restored():
    former = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == former
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    assert wakeup == -1
    assert signal.getsignal(signal.SIGURG) == signal.SIG_DFL
    assert not [thread for thread in threading.enumerate() if thread.name in ("signals", "step-agreement")]


@pytest.mark.parametrize(("number", "interrupted"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_signal_is_reported_at_the_next_poll(number, interrupted):
    with Preemption() as preemption:
        assert not preemption.requested()
        os.kill(os.getpid(), number)
        assert preemption.requested() and preemption.requested()
        assert preemption.interrupted is interrupted


def test_copies_of_one_signal_count_once():
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested() and preemption.interrupted


def test_former_handlers_are_restored_on_exit():
    received = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with Preemption():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, former)


def test_former_handlers_are_restored_after_an_error():
    with pytest.raises(ValueError, match="of the loop"), Preemption():
        raise ValueError("of the loop")


def test_no_handlers_are_installed_outside_the_main_thread():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    answers = []

    def run():
        with Preemption() as preemption:
            answers.append((signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)))
            answers.append(preemption.requested())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [before, False]


def test_exit_codes_of_sigterm_and_sigint():
    assert (Preempted.exit_code, Interrupted.exit_code) == (42, 130)


@pytest.mark.multiprocess
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_process_exits_with_the_code_of_its_signal(number, code):
    process = start(RUN)
    wait_for(process, "ready")
    process.send_signal(number)
    returned, output, errors = end(process)
    assert returned == code and output.startswith("stopped at ") and errors == ""


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGTERM, signal.SIGTERM), 42),
        ((signal.SIGINT, signal.SIGINT), 130),
        ((signal.SIGTERM, signal.SIGINT), 130),
    ],
)
def test_second_signal_ends_the_process_during_a_long_xla_call(numbers, code):
    """The main thread is inside XLA and returns to Python only after minutes."""
    process = start("""
        import jax.numpy as jnp
        from jax import lax
        endless = jax.jit(lambda x: lax.while_loop(lambda x: x[0, 0] >= 0, lambda x: x @ x, x))
        x = endless.lower(jnp.zeros((64, 64))).compile()
        with Preemption():
            print("ready", flush=True)
            x(jnp.zeros((64, 64))).block_until_ready()
    """)
    wait_for(process, "ready")
    process.send_signal(numbers[0])
    time.sleep(2 + SAME_SIGNAL_S)  # a separate signal, not a copy of the first, also where it is handled late
    assert process.poll() is None
    process.send_signal(numbers[1])
    returned, _, errors = end(process)
    assert returned == code and "Second signal: ending now" in errors


@pytest.mark.multiprocess
def test_signal_that_the_parent_passes_on_too_counts_once():
    process = start("""
        from engine.cluster import verdict
        verdict.share()
        with Preemption():
            os.kill(os.getpid(), signal.SIGTERM)  # to the group of both processes
            time.sleep(0.3)
            verdict.pass_on(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # the same, by the parent
            time.sleep(0.3)
            print("goes on", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
    """)
    returned, output, errors = end(process)
    assert (returned, output) == (42, "goes on\n") and "Second signal: ending now" in errors


ENDLESS = """
    import jax.numpy as jnp
    from jax import lax
    from engine.loop import timeouts
    from engine.loop.preemption import start_ended_by_sigterm
    timeouts.START_GRACE_S = 1.0
    endless = jax.jit(lambda x: lax.while_loop(lambda x: x[0, 0] >= 0, lambda x: x @ x, x))
    program = endless.lower(jnp.zeros((64, 64))).compile()
    def xla():
        print("ready", flush=True)
        program(jnp.zeros((64, 64))).block_until_ready()
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("program", "number", "code", "text"),
    [
        ("with Preemption(lambda: 'compiling'): xla()", signal.SIGTERM, 42, "and still compiling after 1 s."),
        ("with Preemption(): xla()", signal.SIGINT, 130, "before the first step, and still busy"),
        ("with start_ended_by_sigterm(): xla()", signal.SIGTERM, 42, "asked to stop while the run was starting."),
    ],
)
def test_one_signal_ends_a_long_xla_call_before_the_first_step(program, number, code, text):
    process = start(textwrap.dedent(ENDLESS) + program)
    wait_for(process, "ready")
    process.send_signal(number)
    returned, _, errors = end(process)
    assert returned == code and text in errors
    assert "No step was made that is not saved." in errors and "Traceback" not in errors


@pytest.mark.multiprocess
def test_signal_waits_for_steps_to_save_and_for_an_answer():
    """Neither of the two long activities after the signal is ended after the grace, which is 0 s here."""
    process = start("""
        from engine.loop import timeouts
        timeouts.START_GRACE_S = 0.0
        with Preemption() as preemption:
            preemption.has_steps_to_save = True
            print("ready", flush=True)
            while not preemption._first_at:
                time.sleep(0.01)
            time.sleep(1)
            preemption.has_steps_to_save = False
            assert preemption.requested()
            print("answered", flush=True)
    """)
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    assert end(process) == (0, "answered\n", "")


@pytest.mark.multiprocess
@pytest.mark.slow
def test_signal_to_one_process_ends_a_peer_that_is_busy_before_the_first_step():
    children = pair(
        textwrap.dedent(ENDLESS)
        + textwrap.dedent("""
        with Preemption(lambda: "compiling") as preemption:
            if rank == 0:
                xla()
            print("ready", flush=True)
            while not preemption.requested():
                time.sleep(0.01)
            time.sleep(600)  # such as a save in which the other process takes part
    """)
    )
    for child in children:
        wait_for(child, "ready")
    children[1].send_signal(signal.SIGTERM)
    ends = [end(child) for child in children]
    assert [returned for returned, _, _ in ends] == [42, 42], ends
    assert "and still compiling after 1 s" in ends[0][2]


def test_handlers_of_the_start_are_restored():
    with start_ended_by_sigterm():
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.requested()


@pytest.mark.faults
@pytest.mark.multiprocess
def test_second_signal_during_a_save_keeps_the_earlier_checkpoint(tmp_path):
    process = start(
        """
        import jax.numpy as jnp
        from pathlib import Path
        from engine.checkpoint.async_save import Saver
        saver = Saver(Path(sys.argv[1]))
        with Preemption() as preemption:
            preemption.has_steps_to_save = True  # so that the grace of a start does not end a slow save
            saver.save(1, {"w": jnp.ones(1000)}, {}, "")
            saver.wait()
            os.kill(os.getpid(), signal.SIGTERM)
            saver.save(2, {"w": jnp.ones(256 << 20)}, {}, "")
            print("ready", flush=True)
            saver.wait()
        """,
        str(tmp_path),
    )
    wait_for(process, "ready")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 42
    from engine.checkpoint.store import CheckpointStore

    assert CheckpointStore(tmp_path).steps() == [1]


def test_signal_cancels_a_wait_and_prevents_the_next():
    with Preemption() as preemption:
        assert preemption.unless_stopped(lambda: "data") == "data"
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert preemption.unless_stopped(threading.Event().wait) is None
        assert preemption.unless_stopped(lambda: pytest.fail("called")) is None
        assert preemption.requested()


def test_signal_outside_a_wait_does_not_interrupt():
    with Preemption() as preemption:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        end = time.monotonic() + 60
        while not preemption.requested():
            assert time.monotonic() < end
            time.sleep(0.01)


def pair(program: str) -> list[runs.Started]:
    """Starts two processes of one job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    join = f"""
    import threading
    from engine.cluster import kv_store, processes
    from engine.cluster.cluster_detection import ProcessInfo
    rank = int(sys.argv[1])
    processes.initialize(ProcessInfo(rank, 2, {address!r}))
    """
    return [start(textwrap.dedent(join) + textwrap.dedent(program), str(rank)) for rank in range(2)]


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_signal_to_one_process_stops_all_at_the_same_step(number, code):
    children = pair("""
        try:
            loop()
        except (Preempted, Interrupted) as error:
            processes.leave()
            sys.exit(error.exit_code)
    """)
    for child in children:
        wait_for(child, "ready")
    children[1].send_signal(number)
    ends = [end(child) for child in children]
    assert [returned for returned, _, _ in ends] == [code, code], ends
    stops = [output for _, output, _ in ends]
    assert stops[0] == stops[1] and stops[0].startswith("stopped at ")


@pytest.mark.multiprocess
@pytest.mark.slow
def test_waits_are_cancelled_only_after_steps_that_a_peer_has_begun():
    """Process 0 has begun step 1; process 1 must still get its data for that step, and both stop before step 2."""
    children = pair("""
        with Preemption() as preemption:
            assert not preemption.requested()
            if rank == 0:
                assert preemption.unless_stopped(lambda: "data") == "data"
                kv_store.put("ahead", "")
            else:
                assert kv_store.get("ahead", 60) == ""
                data = threading.Event()
                threading.Timer(3.0, data.set).start()
                print("ready", flush=True)
                assert preemption.unless_stopped(data.wait) is True
            print("cancelled", preemption.unless_stopped(threading.Event().wait), preemption.requested())
        processes.leave()
    """)
    wait_for(children[1], "ready")
    children[1].send_signal(signal.SIGTERM)
    ends = [end(child) for child in children]
    assert [(returned, output) for returned, output, _ in ends] == [(0, "cancelled None True\n")] * 2, ends


@pytest.mark.multiprocess
@pytest.mark.slow
def test_stop_request_after_a_peer_has_finished_is_ignored():
    children = pair("""
        with Preemption() as preemption:
            for question in range(3 if rank == 0 else 2):
                assert not preemption.requested()
            if rank == 0:
                kv_store.put("finished", "")
            else:
                assert kv_store.get("finished", 60) == ""
                print("ready", flush=True)
                time.sleep(3)
                print("last", preemption.requested())
        processes.leave()
    """)
    wait_for(children[1], "ready")
    children[1].send_signal(signal.SIGTERM)
    ends = [end(child) for child in children]
    assert [(returned, output) for returned, output, _ in ends] == [(0, ""), (0, "last False\n")], ends


def test_stop_is_no_error_that_a_loop_of_runs_could_swallow():
    for stop, kind in ((Preempted("asked to stop."), SystemExit), (Interrupted("asked to stop."), KeyboardInterrupt)):
        assert isinstance(stop, kind) and not isinstance(stop, Exception) and str(stop) == "asked to stop."
        again = pickle.loads(pickle.dumps(stop))
        assert (type(again), str(again)) == (type(stop), "asked to stop.")
    program = "from engine.loop.preemption import Preempted\nraise Preempted('asked to stop.')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (42, "")
