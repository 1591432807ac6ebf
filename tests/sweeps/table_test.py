import csv
import io

from engine.base import json_text
from engine.sweeps.records import read_sweep
from engine.sweeps.table import table, to_csv, to_json
from tests.sweeps.made import complete, failed, make_sweep, pruned, running

TRIALS = [
    complete(1e-3, 16, 0.5, results=[0.4, 0.6], interval=[0.3, 0.7], steps=180),
    complete(1.23456e-3, 64, 0.9, results=[0.9, 0.9], interval=[0.9, 0.9], steps=180),
    pruned(2e-4, 0.25),
    running(3e-4, {}),
    failed(4e-4, "no, \"never\"", "out of memory"),
]  # fmt: skip

TABLE = """\
rank  trial  state          heldout/accuracy  95 % interval  seeds  steps  optimizer.learning_rate  task.width  optimizer.weight_decay
1     1      complete       0.9               0.9 to 0.9     2      180    0.001235                 64          0.02
2     0      complete       0.5               0.3 to 0.7     2      180    0.001                    16
      2      pruned         0.25                             1      30     0.0002                   16
      3      running                                         0      0      0.0003                   16
      4      out of memory                                   0      0      0.0004                   16"""  # noqa: E501


def test_table_has_values_results_and_seeds_the_best_first(tmp_path):
    assert table(read_sweep(make_sweep(tmp_path / "sweep", TRIALS, seeds=2))) == TABLE


def test_long_table_is_cut_with_a_note(tmp_path):
    found = read_sweep(make_sweep(tmp_path / "sweep", TRIALS))
    assert table(found, 2).splitlines()[-1] == "and 3 more"
    assert "95 %" not in table(found) and "seeds" not in table(found)


def test_csv_has_full_precision(tmp_path):
    rows = list(csv.DictReader(io.StringIO(to_csv(read_sweep(make_sweep(tmp_path / "sweep", TRIALS))))))
    assert [row["trial"] for row in rows] == ["1", "0", "2", "3", "4"]
    assert float(rows[0]["optimizer.learning_rate"]) == 1.23456e-3 and rows[0]["low"] == "0.9"
    (row,) = csv.DictReader(
        io.StringIO(to_csv(read_sweep(make_sweep(tmp_path / "third", [complete(1e-3, 16, 1 / 3)]))))
    )
    assert float(row["value"]) == 1 / 3
    assert rows[1]["optimizer.weight_decay"] == "" and rows[-1]["problem"] == 'no, "never"'


def test_json_has_a_row_for_each_trial(tmp_path):
    rows = to_json(read_sweep(make_sweep(tmp_path / "sweep", TRIALS)))
    assert [(row["rank"], row["number"]) for row in rows] == [(1, 1), (2, 0), (None, 2), (None, 3), (None, 4)]
    assert json_text.parse(json_text.dumps(rows[0]))["values"]["optimizer.learning_rate"] == 1.23456e-3
