"""The JSON files of a step are checked before use: any other content is an error."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint import stored_json
from tests.properties import examples

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
KEYS = st.sampled_from(["skipped", "row", "streams", "lines", "next_batch", "x"])
JSON = st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner), st.dictionaries(KEYS, inner)), max_leaves=8)


@pytest.mark.slow
@examples(200)
@given(content=st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(), st.just(b"[" * 100_000)))
def test_any_content_is_a_position_and_a_config_or_an_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "content.json"
    path.write_bytes(content)
    with contextlib.suppress(OSError, ValueError):
        position = stored_json.position(path)
        assert set(position.get("skipped", ())) >= set()  # as `Attempt.restore` reads it
        assert all(len(pair) == 2 for pair in position.get("row", {}).values())
        assert all(isinstance(number, int) for number, _ in position.get("streams", {}).values())
    with contextlib.suppress(OSError, ValueError):
        assert isinstance(stored_json.config_text(path), str)


def test_what_a_save_writes_is_accepted(tmp_path):
    path = tmp_path / "x.json"
    position = {"next_batch": 3, "next_example": 48, "skipped": [1], "row": {"loss": [0.5, 16.0]}}
    path.write_text(json.dumps(position))
    assert stored_json.position(path) == position
    path.write_text(json.dumps({**position, "row": {"loss": [1]}}))
    with pytest.raises(ValueError, match=r"row\.loss: found a list of 1, expected a list of 2"):
        stored_json.position(path)
    path.write_text(json.dumps({**position, "streams": {"0": [12, None], "a/1": [3, {"byte": 7}]}}))
    assert stored_json.position(path)["streams"]["a/1"] == [3, {"byte": 7}]
    path.write_text(json.dumps({**position, "streams": {"0": [None, 12]}}))
    with pytest.raises(ValueError, match=r"streams\.0\[0\]: found null, expected a whole number"):
        stored_json.position(path)
    path.write_text('{"lines": ["a: 1", "b: 2"]}')
    assert stored_json.config_text(path) == "a: 1\nb: 2"
