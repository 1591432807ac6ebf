import sys
from pathlib import Path

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.readers import Parquet

FIXTURES = Path(__file__).parent / "fixtures"


def test_scenarios_of_pandas_are_one_example_each():
    constant = ["scenario_id", "city", "focal_track_id"]
    source = Parquet(str(FIXTURES / "argoverse2/*/scenario_*.parquet"), one_per_file=True, constant=constant)
    assert len(source) == 2
    assert source.lengths().tolist() == [10, 16]
    found = source[1]
    assert (found["scenario_id"], found["city"], found["focal_track_id"]) == ("00001", "austin", "101")
    assert found["track_id"].tolist() == ["AV"] * 6 + ["101"] * 4 + ["102"] * 6
    assert found["timestep"][6:10].tolist() == [2, 3, 4, 5]
    assert found["position_x"][6:10].tolist() == [12.0, 13.0, 14.0, 15.0]
    assert found["observed"].dtype == np.bool_
    assert found["start_timestamp"][0] == 315968003059860501


def test_file_of_polars_holds_text_views_categories_and_nested_lists():
    source = Parquet(str(FIXTURES / "polars.parquet"))
    assert len(source) == 9
    found = source[5]
    assert (found["name"], found["kind"], found["pose"]["frame"]) == ("scene-5", "car", "map")
    assert found["points"].tolist() == [[5.0, k] for k in range(5)]
    with pytest.raises(DataError, match=r"row 4 of .*polars.parquet: column score is null"):
        source[4]


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # its import fails
    with pytest.raises(DataError, match=r"Parquet files need pyarrow.*: pip install .*\[parquet\]'"):
        Parquet("a.parquet")


def test_missing_file_and_other_format_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none.parquet: no such file. Correct the pattern"):
        Parquet(str(tmp_path / "none.parquet"))
    (tmp_path / "a.parquet").write_bytes(b"something else" * 10)
    with pytest.raises(DataError, match=r"a.parquet: not a complete Parquet file"):
        Parquet(str(tmp_path / "a.parquet"))
