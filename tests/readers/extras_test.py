import json
import sys

import pytest

from engine.base.errors import DataError
from engine.readers.extras import import_extra


def test_installed_module_is_returned():
    assert import_extra("json", "x", "JSON files") is json


def test_missing_module_is_named_with_its_extra(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"X files need no-such, which is not installed: pip install .*\[x"):
        import_extra("no_such.part", "x", "X files")
    (tmp_path / "needs_another.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="X files need no_such_library, which is not installed"):
        import_extra("needs_another", "x", "X files")
    sys.modules.pop("needs_another", None)
