"""A run keeps its folder; another run of the same name gets one with a number."""

from typing import Any

import pytest

from engine.base.errors import ConfigError
from engine.trackers.csv_tracker import Csv
from engine.trackers.folders import folder_of_run
from engine.trackers.tensorboard_tracker import TensorBoard


def test_names_are_taken_once(tmp_path):
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    assert folder_of_run(tmp_path / "new", "a", first).name == "a"
    assert folder_of_run(tmp_path / "new", "a", second).name == "a-2"
    assert folder_of_run(tmp_path / "new", "a", first).name == "a"
    (tmp_path / "new" / "a-2").rmdir()
    assert folder_of_run(tmp_path / "new", "a", second).name == "a-2"


@pytest.mark.parametrize("tracker", [Csv, TensorBoard])
def test_address_of_a_bucket_is_no_folder(tracker):
    with pytest.raises(ConfigError, match="gs://bucket/x: found an address"):
        tracker(folder="gs://bucket/x")
