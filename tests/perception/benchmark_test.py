"""The benchmark of the operations: it prints their errors and times, and fails where two ways differ."""

from benchmarks import perception as benchmark
from tests.perception import goldens


def test_rows_have_the_errors_and_the_times_of_both_ways(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "GOLDEN", goldens.FOLDER)
    assert benchmark.main(["--only=chamfer_distance,nms", "--turns=1"]) == 0
    head, chamfer, nms = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head[:4] == ["operation", "value", "gradient", "reference"]
    assert chamfer[0] == "chamfer_distance" and max(map(float, chamfer[1:3])) < 1e-5 and chamfer[3] == "PyTorch"
    assert nms[0] == "nms" and float(nms[1]) == 0 and nms[2] == "-"
    assert min(map(float, (*chamfer[4:], *nms[4:]))) > 0


def test_unknown_operation_is_one_sentence(capsys):
    assert benchmark.main(["--only=mns"]) == 2
    assert "mns is unknown. Operations: " in capsys.readouterr().err
