"""Waymo's motion metrics equal the evaluation of Waymo's package, and definitions written as loops."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.references import waymo_motion as reference
from engine.base.errors import TaskError
from engine.driving.waymo_motion import BUCKETS, HORIZONS, TYPES, motion_bucket
from engine.metrics import WaymoMotion
from tests.merging import results

# Written by: python -m benchmarks.references --only=waymo_motion --golden=tests/driving/golden/references
GOLDEN = np.load(Path(__file__).parent / "golden" / "references" / "waymo_motion.npz")
OBJECTS = reference.OBJECTS


def arguments(**changes) -> list[np.ndarray]:
    return [changes.get(name, GOLDEN[name]) for name in reference.CASE]


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return results(reference.measured(*arguments()), 3)


def test_numbers_equal_the_evaluation_of_waymo(found):
    wanted = {f"m/{name}": value for name, value in reference.outside_results(GOLDEN["results"]).items()}
    assert len(wanted) == 45 and min(wanted.values()) >= 0 and len({*wanted.values()}) > 30
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=reference.TOLERANCE)


def test_results_without_a_type_or_a_horizon_are_means(found):
    for number in ("mean_ap", "min_ade", "overlap_rate", "soft_mean_ap"):
        by_horizon = [np.mean([found[f"m/{kind}/{horizon}/{number}"] for kind in TYPES]) for horizon in HORIZONS]
        assert [found[f"m/{horizon}/{number}"] for horizon in HORIZONS] == pytest.approx(by_horizon)
        assert found[f"m/{number}"] == pytest.approx(np.mean(by_horizon))
        assert found[f"m/cyclist/{number}"] == pytest.approx(
            np.mean([found[f"m/cyclist/{horizon}/{number}"] for horizon in HORIZONS])
        )
    assert found["m/soft_mean_ap"] > found["m/mean_ap"]


def test_padding_and_other_types_are_left_out(found):
    types = GOLDEN["types"].copy()
    none, row = types.copy(), GOLDEN["types"][:, :OBJECTS] == 3
    none[:, :OBJECTS][row] = 0
    part = results(reference.measured(*arguments(types=none)))
    assert np.isnan(part["m/cyclist/8s/min_ade"]) and part["m/vehicle/8s/min_ade"] == found["m/vehicle/8s/min_ade"]
    noise = GOLDEN["predicted"].copy()
    noise[row] = 1e3
    assert results(reference.measured(*arguments(predicted=noise, types=none))) == pytest.approx(part, nan_ok=True)


def test_kinds_of_motion():
    ways = {  # x, y, heading at the end, speed
        "stationary": (1, 1, 2.0, 1),
        "straight": (30, 2, 0.2, 5),
        "straight_left": (30, 4, 0.2, 5),
        "straight_right": (30, -4, -0.2, 5),
        "left_u_turn": (-1, 6, 3.0, 5),
        "left_turn": (15, 15, 1.5, 5),
        "right_turn": (15, -15, -1.5, 5),
    }
    for angle in (0.0, 2.5):
        c, s = np.cos(angle), np.sin(angle)
        for name, (x, y, heading, speed) in {**ways, "right_u_turn": (-1, -6, -3.0, 5)}.items():
            states = np.zeros((4, 7), np.float32)
            states[0, 4:] = angle, speed * c, speed * s
            states[2] = c * x - s * y + states[0, 0], s * x + c * y, 0, 0, angle + heading, 0, 0
            valid = jnp.array([True, False, True, False])
            wanted = BUCKETS.index(name.replace("right_u_turn", "right_turn"))
            assert int(motion_bucket(jnp.asarray(states), valid)) == wanted, (name, angle)
            assert int(motion_bucket(jnp.asarray(states), valid & jnp.array([True, True, False, True]))) == -1
            assert int(motion_bucket(jnp.asarray(states), valid & jnp.array([False, True, True, True]))) == -1


def test_without_other_boxes_there_is_no_overlap_rate():
    predicted, confidences, states, _, types = arguments()
    metric = WaymoMotion.of(predicted, confidences, states[:, :OBJECTS], types[:, :OBJECTS])
    found = results(metric)
    assert np.isnan(found["m/overlap_rate"]) and found["m/min_ade"] > 0


def test_wrong_shapes_are_errors():
    with pytest.raises(
        TaskError, match=r"have the shapes \[2, 3, 6, 80, 2\], .* Allowed: \[batch, objects, modes, 16, 2\]"
    ):
        WaymoMotion.of(np.zeros((2, 3, 6, 80, 2)), np.zeros((2, 3, 6)), np.zeros((2, 3, 81, 7)), np.zeros((2, 3)))
