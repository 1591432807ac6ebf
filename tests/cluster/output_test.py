"""Standard output and standard error that cannot be written end no process."""

import os
import select
import subprocess
import sys
import textwrap

import pytest

from engine.cluster import output

START = "import os, sys, logging, warnings\nfrom engine.cluster import output\noutput.guard()\n"


def run(program: str, shell: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a program whose streams the shell redirects; it reports in the file descriptor 3."""
    words = ["bash", "-c", f'exec 3>&1; "$@" {shell}', "bash", sys.executable, "-c", START + textwrap.dedent(program)]
    return subprocess.run(words, capture_output=True, text=True, pass_fds=(3,), timeout=180)


def report(program: str, shell: str) -> str:
    """Returns what the program wrote to the file descriptor 3."""
    done = run(program, shell)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


EVERYTHING = """
for _ in range(2):
    print("x" * 100_000, flush=True)
    print("to stderr", file=sys.stderr)
    logging.warning("logged")
    warnings.warn("warned")
    from rich.console import Console
    Console(file=sys.stderr, force_terminal=True).print("rich")
os.write(1, b"direct")
os.write(2, b"direct")
os.write(3, repr(output.unreported() + output.unreported()).encode())
"""


def test_streams_that_cannot_be_written_go_silent_and_are_reported_once():
    full = "cannot be written (No space left on device); it stays silent from here on."
    found = report(EVERYTHING, "1>/dev/full 2>/dev/full")
    assert found == repr([f"standard output {full}", f"standard error {full}"])
    broken = "cannot be written (Broken pipe); it stays silent from here on."
    found = report(EVERYTHING, "2>/dev/null | head -c 10 >/dev/null; sleep 0")
    assert found == repr([f"standard output {broken}"])
    was = "is closed: it was closed when this process started."
    found = report(EVERYTHING, "<&- >&- 2>&-")
    assert found == repr([f"standard output {was}", f"standard error {was}"])


def test_closed_stream_is_not_reused_by_the_next_file():
    program = """
    null = [os.fstat(n).st_rdev == os.stat(os.devnull).st_rdev for n in (1, 2)]
    os.write(3, repr([open(os.devnull).fileno() > 3, sys.stdin.read(), *null]).encode())
    """
    assert report(program, "<&- >&- 2>&-") == "[True, '', True, True]"


def test_working_streams_keep_their_settings():
    done = run("print('a', end=''); print('b', file=sys.stderr); assert not output.unreported(); output.check()")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a", "b\n")
    done = run("print('\\u00fc', sys.stdout.encoding, os.fsdecode(b'\\xff'))", "3>&1")
    assert done.stdout in ("\u00fc utf-8 \\udcff\n", "\\xfc ascii \\udcff\n")


def test_lost_result_of_a_verb_is_an_error_unless_its_reader_has_ended():
    check = """
    print("result" * 10_000)
    try:
        output.check()
        os.write(3, b"fine")
    except output.OutputError as error:
        os.write(3, str(error).encode())
    """
    assert (
        report(check, ">/dev/full")
        == "standard output: cannot be written (No space left on device). The output is lost."
    )
    assert report(check, "| true") == "fine"
    assert report(check, ">&-") == "fine"


def test_non_blocking_terminal_loses_nothing():
    program = "os.set_blocking(1, False)\nfor _ in range(100): print('x' * 10_000)"
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as reader:
        process = subprocess.Popen([sys.executable, "-u", "-c", START + program], stdout=write_end)
        os.close(write_end)
        assert len(reader.read()) == 1_000_100
        assert process.wait(60) == 0


UNREAD = """
import time
begin = time.monotonic()
for n in range(40):
    print("x" * 100_000, file=sys.stderr)
output.show("shown")
finished = output.finish()
os.write(3, repr((finished, time.monotonic() - begin < 20, output.unreported())).encode())
"""


def test_unread_standard_error_blocks_nothing_and_names_what_is_missing():
    read_end, write_end = os.pipe()
    out, into = os.pipe()
    words = ["bash", "-c", 'exec 3>&1; "$@"', "bash", sys.executable, "-c", START + UNREAD]
    process = subprocess.Popen(words, stdout=into, stderr=write_end)
    os.close(write_end)
    os.close(into)
    with open(out) as report, open(read_end, "rb"):
        assert process.wait(60) == 0
        assert report.read() == repr(
            (False, True, ["standard error was not read in time: 41 lines are missing or may appear later. This log "
                           "has those of the engine."])
        )  # fmt: skip


def test_standard_output_waits_for_its_reader_until_it_is_no_result():
    program = """
    import threading
    for n in range(100): print("x" * 10_000, flush=True)
    output.drop_unread_results()
    assert not output.waits_for_reader()
    for n in range(1000): print("y" * 10_000, flush=True)
    os.write(2, b"done")
    """
    process = subprocess.Popen(
        [sys.executable, "-c", START + textwrap.dedent(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    assert os.read(process.stdout.fileno(), 10) == b"x" * 10
    assert not select.select([process.stderr], [], [], 0.5)[0]  # a megabyte of results waits for its reader
    left = 1_000_090
    while left:
        left -= len(os.read(process.stdout.fileno(), left))
    assert process.stderr.read() == b"done"  # nobody has read the 10 megabytes
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_end_of_a_process_does_not_wait_for_the_reader_of_a_result(unbuffered):
    program = """
    import select, threading, time
    threading.Thread(target=lambda: print("x" * 3_000_000), daemon=True).start()
    while select.select([], [1], [], 0)[1]: time.sleep(0.01)  # until the pipe is full
    begin = time.monotonic()
    finished = output.finish()
    os.write(2, repr((finished, time.monotonic() - begin < 10)).encode())
    os._exit(0)
    """
    read_end, write_end = os.pipe()
    words = [sys.executable, "-c", START + textwrap.dedent(program)]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(words, stdout=write_end, stderr=subprocess.PIPE, env=environment)
    os.close(write_end)
    assert process.stderr is not None
    with open(read_end, "rb"), process.stderr:
        assert process.wait(60) == 0
        assert process.stderr.read() == b"(False, True)"


def test_show_writes_to_a_stream_that_is_not_guarded(capsys, monkeypatch):
    output.show("a line")
    assert capsys.readouterr().err == "a line\n"
    stream = output.nonblocking(sys.stderr)
    assert output.nonblocking(sys.stderr) is stream and output.nonblocking(stream) is stream
    assert stream.isatty() == sys.stderr.isatty()
    monkeypatch.setattr(sys, "stderr", open(os.devnull, "w"))  # noqa: SIM115
    sys.stderr.close()
    output.show("discarded")


def test_exit_of_a_program_that_uses_the_engine_does_not_wait_for_a_reader():
    program = """
    import sys
    from engine.cluster import output
    stream = output.nonblocking(sys.stderr)
    for _ in range(3000): stream.write("x" * 60 + "\\n")
    """
    read_end, write_end = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stderr=write_end)
    os.close(write_end)
    with open(read_end, "rb"):
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()
