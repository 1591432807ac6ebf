"""Standard output and standard error that cannot be written end no process."""

import os
import subprocess
import sys
import textwrap

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
