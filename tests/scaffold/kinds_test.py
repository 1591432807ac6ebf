from pathlib import Path

import engine.scaffold
from engine.scaffold.kinds import KINDS


def test_each_kind_has_a_folder_of_templates():
    [folder] = engine.scaffold.__path__
    found = {path.name for path in (Path(folder) / "templates").iterdir() if path.is_dir()}
    assert found == {*KINDS, "common"}
