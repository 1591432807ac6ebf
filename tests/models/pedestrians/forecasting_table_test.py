"""The command that trains on all places but one, tests on that one, and prints a table of errors."""

from benchmarks import forecasting
from tests.models.pedestrians import recordings


def test_command_trains_tests_and_prints_the_table(tmp_path, capsys):
    folder = recordings.write(tmp_path / "data", walkers=3, frames=21)
    arguments = [f"--folder={folder}", f"--workdir={tmp_path}/runs", "--seeds=0", "--modes=3"]
    tiny = ["task.width=8", "task.heads=2", "task.temporal=1", "train.total=2 steps", "train.global_batch_size=8"]
    forecasting.main([*arguments, "--places=eth", *tiny])
    lines = capsys.readouterr().out.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("ADE/FDE"))
    assert lines[head].split()[-3:] == ["eth", "average", "seeds"]
    names = [line.split("  ")[0] for line in lines[head + 1 :]]
    assert [name for name in names if "two agents" not in name] == [
        "this model, K = 3",
        "its first of 3",
        "constant velocity, K = 1",
    ]
