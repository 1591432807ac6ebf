"""A fork of the server is the process that an interpreter would have been."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests import runs, warm

pytestmark = pytest.mark.multiprocess

TELLS = """
import json, os, signal, sys, threading
import engine.cluster.verdict
here = open("/proc/self/environ").read().split(chr(0))
found = {
    "argv": sys.argv, "main": __name__, "folder": os.getcwd(), "path": sys.path, "session": os.getsid(0) == os.getpid(),
    "variables": {name: os.environ.get(name) for name in ("CONVOY_A", "JAX_NUM_CPU_DEVICES", "GONE", "WARM_ROOM")},
    "proc": sorted(text for text in here if text.startswith(("CONVOY_", "WARM_", "JAX_NUM"))),
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)],
    "files": sorted(os.listdir("/proc/self/fd"))[:3], "streams": [sys.stdin.name, sys.stdout.name, sys.stderr.name],
    "modules": [name for name in sys.modules if name.startswith("engine.cluster.v")],
}
import jax
found["devices"] = len(jax.devices())
print(json.dumps(found))
print("last", end="")
threading.Thread(target=lambda: print(" words", end="")).start()
sys.exit(int(sys.argv[1]))
"""


def test_fork_is_the_process_that_an_interpreter_would_be(tmp_path):
    words = [sys.executable, "-c", TELLS, "7"]
    env = runs.environment(CONVOY_A="b = c", JAX_NUM_CPU_DEVICES="3", PYTHONPATH=str(tmp_path))
    assert warm.can_fork(words, env)
    forked = runs.run(words, cwd=tmp_path, env=env)
    started = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert forked.stdout.splitlines() == started.stdout.splitlines(), started.stderr
    assert forked.returncode == started.returncode == 7
    found = json.loads(forked.stdout.splitlines()[0])
    assert found["devices"] == 3 and found["folder"] == str(tmp_path)


def test_launcher_starts_and_ends_forks_as_it_does_interpreters():
    """Each process leads a group, has no thread or signal handler of its launcher, and dies with it."""
    program = textwrap.dedent("""
        import os, signal, sys, time
        from engine.cluster import verdict
        index = os.environ["CONVOY_PROCESS_ID"]
        print(os.getpgrp() == os.getpid(), os.getppid(), signal.getsignal(signal.SIGTERM), verdict.is_launched())
        sys.exit(time.sleep(600) if index == "1" else 3)
    """)
    launcher = textwrap.dedent(f"""
        import os, sys
        from engine.launch.local import launch
        print(os.getpid(), flush=True)
        sys.exit(launch([sys.executable, "-c", {program!r}], processes=2, grace_s=0.1))
    """)
    done = runs.run([sys.executable, "-c", launcher])
    pid, *lines = done.stdout.splitlines()
    assert sorted(lines) == [f"[{i}] True {pid} 0 True" for i in range(2)], done.stdout + done.stderr
    assert done.returncode == 3


@pytest.mark.parametrize("name, value", [("JAX_ENABLE_X64", "1"), ("LD_PRELOAD", "x.so"), ("LANG", "C")])
def test_variables_that_are_read_at_the_start_make_a_program_start_anew(name, value):
    words = [sys.executable, "-c", ""]
    assert warm.can_fork(words, runs.environment())
    assert not warm.can_fork(words, runs.environment(**{name: value}))
    assert not warm.can_fork(["bash", "-c", ""], runs.environment())


def test_program_with_a_preloaded_library_is_a_fork_of_a_server_that_has_it():
    maps = Path("/proc/self/maps").read_text().splitlines()
    library = next(line.split()[-1] for line in maps if "/libm" in line)
    code = "import os, sys; print('jax' in sys.modules, os.environ['LD_PRELOAD'])"
    done = runs.run([sys.executable, "-c", code], env=runs.environment(LD_PRELOAD=library))
    assert done.stdout == f"True {library}\n"


def test_folder_with_a_library_makes_a_program_start_anew(tmp_path):
    assert warm.can_fork([sys.executable, "-c", ""], runs.environment(PYTHONPATH=str(tmp_path)))
    (tmp_path / "jax").mkdir()
    assert not warm.can_fork([sys.executable, "-c", ""], runs.environment(PYTHONPATH=str(tmp_path)))


def test_killed_fork_has_the_signal_as_its_code():
    assert runs.run([sys.executable, "-c", "import os; os.abort()"]).returncode == -signal.SIGABRT
    assert runs.run([sys.executable, "-c", "raise KeyError(3)"]).stderr.endswith("KeyError: 3\n")
