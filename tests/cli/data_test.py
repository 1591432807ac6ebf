"""`convoy data write` and `convoy data check` in this process; tests of the functions are in tests/datasets."""

import json

import pytest

from engine.cli.main import main
from tests import runs
from tests.datasets.scans import Scans

DIGITS = "--config=configs.digits"
DATA = f"--data.target={Scans.__module__}.Scans"


def test_write_then_check_a_dataset_without_a_config(tmp_path, capsys):
    out = tmp_path / "scans.arrayrecord"
    write = ["data", "write", DATA, "--data.count=20", "--data.bad=(4,)", "--data.on_error=skip", f"--out={out}"]
    assert main([*write, "--shards=2", "--processes=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"wrote 19 examples to {out} in 2 files"
    assert lines[1].startswith("left out example 4: OSError: scan 4 is damaged")
    assert lines[2].endswith(f"data.target=engine.readers.array_record.ArrayRecordSource and data.pattern={out}")
    assert main([*write, "--processes=1"]) == 0
    assert capsys.readouterr().out.startswith(f"wrote 19 examples to {out} in 2 files; 2 were finished before\n")

    read = ["--data.target=engine.readers.array_record.ArrayRecordSource", f"--data.pattern={out}"]
    assert main(["data", "check", *read]) == 0
    assert "checksums: 2 of 2 files are as they were written" in capsys.readouterr().out


def test_data_write_converts_a_dataset(tmp_path):
    done = runs.convoy("data", "write", DIGITS, "--out=digits.array_record", "--config.data.limit=40", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "wrote 40 examples" in done.stdout
    done = runs.convoy(
        "train", DIGITS, "--config.data.target=engine.readers.array_record.ArrayRecordSource", "--config.data.split=x",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "data.split: engine.readers.array_record.ArrayRecordSource takes no such argument" in done.stderr


def test_check_of_bad_examples_fails_and_prints_json(capsys):
    assert main(["data", "check", DATA, "--data.count=20", "--data.bad=(4,)", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["examples"], report["bad_count"], report["bad"][0]["index"]) == (20, 1, 4)


def test_data_of_an_evaluation_can_be_checked(tmp_path, capsys):
    config = tmp_path / "scans_config.py"
    config.write_text(
        "from engine.config import defaults\n"
        "def get_config():\n"
        "    c = defaults()\n"
        "    c.task.target = 'tests.zoo.Classify'\n"
        f"    c.data = dict(target='{Scans.__module__}.Scans', count=9)\n"
        f"    c.evaluations.heldout = dict(data=dict(target='{Scans.__module__}.Scans', count=11))\n"
        "    return c\n"
    )
    for more, count in [([], 9), (["--evaluation=heldout"], 11), (["--config.data.count=10"], 10)]:
        assert main(["data", "check", f"--config={config}", *more]) == 0
        assert f"{count} examples, 0 bad" in capsys.readouterr().out
    assert main(["data", "check", f"--config={config}", "--evaluation=heldot"]) == 1
    assert "no such evaluation. Did you mean heldout? The config has: heldout." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["check"], "convoy data check: no dataset. Name a config with --config=CONFIG, or a source with"),
        (["write", DATA], "the following arguments are required: --out"),
        (["wrte"], "invalid choice: 'wrte'"),
        (["check", "configs.digits"], "configs.digits: unknown argument of convoy data check. Did you mean --config=c"),
        (["check", DATA, "--processes=0"], "processes = 0: allowed is a whole number from 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_sentence(words, text, capsys):
    assert main(["data", *words]) == 1
    assert text in capsys.readouterr().err
