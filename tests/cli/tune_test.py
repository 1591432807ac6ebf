"""`convoy tune`: what it prints, its exit codes, and several processes; tests of the numbers are in tests/tuning."""

import numpy as np
import pytest

from engine.cli.main import main
from tests import runs

pytestmark = pytest.mark.multiprocess
BOWL = """
from tests.tuning import problems

def get_config():
    from engine.config.draft import draft_of
    return draft_of(problems.config("{task}", "{data}"))
"""


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """The working directory, with the configs bowl.py and regression.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bowl.py").write_text(BOWL.format(task="Bowl", data="targets"))
    (tmp_path / "regression.py").write_text(BOWL.format(task="Regression", data="observations"))
    return tmp_path


def test_range_without_an_answer_exits_with_1_and_says_which_end_to_extend(configs, capsys):
    assert main(["tune", "lr", "--config=bowl.py", "--from=1e-9", "--to=1e-7", "--repeats=1", "--steps=30"]) == 1
    output = capsys.readouterr()
    assert "--config.optimizer" not in output.out
    assert "tune lr: no suggestion: the loss has neither fallen nor risen" in output.err
    assert "--to=1e-05" in output.err and "Traceback" not in output.err


def test_flags_that_do_not_fit_together_are_one_sentence(configs, capsys):
    assert main(["tune", "batch"]) == 1
    assert main(["tune", "batch", "--config=regression.py", "--step=5"]) == 1
    assert main(["tune", "batch", "--run=runs/a", "--config.train.seed=5"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [error.partition(". ")[0] for error in errors] == [
        "ConfigError: tune batch: give either --config=CONFIG, or --run=RUN with checkpoints.",
        "ConfigError: --step: names a checkpoint of --run=RUN",
        "ConfigError: --config.train.seed=5: convoy tune batch --run reads the run's own config and takes no "
        "overrides.",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("lr", "--config=bowl.py", "--from=0.02", "--to=5", "--repeats=2"), "--config.optimizer.learning_rate="),
        (
            ("batch", "--config=regression.py", "--steps=4", "--points=2", "--batches=8"),
            "examples, a larger batch costs",
        ),
    ],
    ids=["lr", "batch"],
)
def test_two_processes_find_and_print_what_one_finds(configs, capsys, words, sentence):
    launch = ("launch", "local", "--processes=2", "--devices-per-process=1", "--")
    two = runs.convoy(*launch, "tune", *words, "--out=two", cwd=configs, **runs.COMPILING)
    assert two.returncode == 0, two.stderr
    assert main(["tune", *words, "--out=one"]) == 0
    output = capsys.readouterr()
    assert output.out.count(sentence) == two.stdout.count(sentence) == 1
    assert "wrote curve.csv and curve.png to one" in output.err and not (configs / "runs").exists()
    tables = [np.genfromtxt(configs / name / "curve.csv", delimiter=",", names=True) for name in ("one", "two")]
    assert tables[0].dtype.names == tables[1].dtype.names and len(tables[0]) > 1
    for name in tables[0].dtype.names or ():  # up to the rounding of sums over devices and processes
        np.testing.assert_allclose(tables[1][name], tables[0][name], rtol=1e-3)
