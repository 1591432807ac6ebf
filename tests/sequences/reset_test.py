import numpy as np
import pytest

import engine

STARTS = np.array([True, False, True])


def test_state_is_reset_in_the_rows_whose_drive_starts():
    state = {"h": np.ones((3, 2), np.float32), "n": np.array([4, 5, 6])}
    found = engine.reset_at_starts(state, STARTS)
    np.testing.assert_array_equal(found["h"], [[0, 0], [1, 1], [0, 0]])
    np.testing.assert_array_equal(found["n"], [0, 5, 0])
    assert found["n"].dtype == np.int32 and found["h"].dtype == np.float32


def test_state_starts_with_given_values():
    state = {"h": np.zeros((3, 2), np.float32), "n": np.zeros(3, np.float32)}
    found = engine.reset_at_starts(state, STARTS, {"h": np.array([7.0, 8.0]), "n": 3.0})
    np.testing.assert_array_equal(found["h"], [[7, 8], [0, 0], [7, 8]])
    np.testing.assert_array_equal(found["n"], [3, 0, 3])
    np.testing.assert_array_equal(engine.reset_at_starts(state, STARTS, 2)["n"], [2, 0, 2])


def test_state_of_another_number_of_rows_is_refused():
    with pytest.raises(ValueError, match=r"the state has shape \[4, 2\], and starts \[3\]"):
        engine.reset_at_starts(np.zeros((4, 2)), STARTS)
