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


def test_learning_rate_is_printed_with_its_flag_and_written(configs, capsys):
    words = ["tune", "lr", "--config=bowl.py", "--from=0.02", "--to=5", "--repeats=2", "--out=found"]
    assert main(words) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[-1].startswith("--config.optimizer.learning_rate=")
    assert "range test 2 of 2" in output.err and "wrote curve.csv and curve.png to found" in output.err
    assert sorted(path.name for path in configs.rglob("*") if path.is_file() and path.suffix in (".csv", ".png")) == [
        "curve.csv",
        "curve.png",
    ]
    assert not (configs / "runs").exists()


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
    "words",
    [
        ("lr", "--config=bowl.py", "--from=0.02", "--to=5", "--repeats=2"),
        ("batch", "--config=regression.py", "--steps=4", "--points=2", "--batches=8"),
    ],
    ids=["lr", "batch"],
)
def test_two_processes_find_what_one_finds(configs, words):
    launch = ("launch", "local", "--processes=2", "--devices-per-process=1", "--")
    two = runs.convoy(*launch, "tune", *words, "--out=two", cwd=configs, **runs.COMPILING)
    one = runs.convoy("tune", *words, "--out=one", cwd=configs, JAX_NUM_CPU_DEVICES="2", **runs.COMPILING)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    tables = [np.genfromtxt(configs / name / "curve.csv", delimiter=",", names=True) for name in ("one", "two")]
    assert tables[0].dtype.names == tables[1].dtype.names and len(tables[0]) > 1
    for name in tables[0].dtype.names or ():  # up to the rounding of sums over processes
        np.testing.assert_allclose(tables[1][name], tables[0][name], rtol=1e-3)
    assert "suggestion: " in two.stdout and two.stdout.count("suggestion: ") == 1
