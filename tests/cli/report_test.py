"""`convoy report` of the digits run; tests of its content are in tests/report."""

import subprocess
import sys

from engine.cli.main import main
from tests import runs
from tests.levels import TOP
from tests.report.made import full_run
from tests.sweeps.made import complete, make_sweep

PROGRAM = """
import sys
from engine.cli.main import main
assert main(["report", sys.argv[1], f"--out={sys.argv[2]}"]) == 0
print(sorted({"jax", "matplotlib", "rich"} & set(sys.modules)))
"""


def test_report_is_written_without_heavy_libraries(digits, tmp_path):
    words = [sys.executable, "-c", PROGRAM, str(digits[0]), str(tmp_path / "a.html")]
    done = subprocess.run(words, env=runs.environment(PYTHONPATH=str(TOP)), capture_output=True, text=True, check=True)
    assert done.stdout == f"wrote {tmp_path / 'a.html'}\n[]\n"
    assert '"training/accuracy"' in (tmp_path / "a.html").read_text()


def test_report_is_in_the_run_directory_by_default(digits, capsys, tmp_path, monkeypatch):
    assert main(["report", str(digits[0])]) == 0
    assert capsys.readouterr().out == f"wrote {digits[0] / 'report.html'}\n"
    (digits[0] / "report.html").unlink()  # other tests list the files of this run
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(digits[0]), str(digits[0])]) == 0
    assert (tmp_path / "report.html").exists()


def test_report_of_a_sweep_has_its_trials(tmp_path, capsys):
    made = make_sweep(tmp_path / "sweep", [complete(1e-3, 16, 0.5, runs=["trials/0000"])])
    full_run(made / "trials" / "0000")
    assert main(["report", str(made)]) == 0
    assert capsys.readouterr().out == f"wrote {made / 'report.html'}\n"
    assert '"importanceNote"' in (made / "report.html").read_text()


def test_mistakes_are_one_sentence(digits, capsys):
    assert main(["report", "nowhere"]) == 1
    assert main(["report", str(digits[0]), "--out=report.pdf"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[0].startswith("RunError: nowhere: is not a run directory")
    assert errors[1] == "ConfigError: --out = report.pdf: found the ending '.pdf'. Allowed: NAME.html."
