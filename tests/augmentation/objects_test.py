import pickle

import numpy as np
import pytest

from engine import ArraySource
from engine.augmentation import Boxes, Points
from engine.augmentation.objects import Reader, build_objects, placed
from engine.base.errors import DataError
from engine.data.adapt import as_source
from tests.augmentation.frames import Frames, pose

POINTS, BOXES = Points("points"), Boxes("boxes", others=("kind",))


def reader(**settings):
    return Reader(**{"points": POINTS, "boxes": BOXES, "label": "kind", "least": 5, "where": "test", **settings})


@pytest.fixture(scope="module")
def found():
    return build_objects(as_source(Frames(), "test"), reader(), None, None)


def test_objects_are_those_with_enough_points_in_their_box(found):
    expected = []
    for index in range(len(Frames())):
        frame = Frames()[index]
        for box, kind, own in zip(frame["boxes"], frame["kind"], frame["own"], strict=True):
            if own >= 5:
                expected.append((box.tolist(), str(kind), own))
    assert len(found) == len(expected) > 10
    for number, (box, kind, own) in enumerate(expected):
        assert found.rows("boxes", np.array([number])).tolist() == [box]
        assert len(found.points(number)) == own
        assert number in found.by_label[kind]
    assert sum(map(len, found.by_label.values())) == len(found)


def test_points_of_a_sensor_are_stored_in_the_ego_frame(found):
    tilted = build_objects(
        as_source(Frames(to_ego=True), "test"), reader(points=Points("points", to_ego="to_ego")), None, None
    )
    assert len(tilted) == len(found)
    for number in range(len(found)):
        np.testing.assert_allclose(tilted.points(number), found.points(number), atol=1e-4)


def test_points_are_placed_by_a_pose():
    points, to_ego = np.random.default_rng(0).normal(size=(9, 5)), pose()
    expected = [[*(to_ego[:3, :3] @ p[:3] + to_ego[:3, 3]), *p[3:]] for p in points]
    np.testing.assert_allclose(placed(points, to_ego), expected)
    np.testing.assert_allclose(placed(placed(points, to_ego), np.linalg.inv(to_ego)), points)


def test_cache_is_read_until_the_source_or_a_setting_changes(tmp_path, found):
    path = str(tmp_path / "objects.cache")

    def stored(source, **settings):
        return build_objects(as_source(source, "test"), reader(**settings), None, path)

    first = stored(Frames())
    counting = Frames()
    assert stored(counting).fingerprint() == first.fingerprint() == found.fingerprint()
    assert counting.reads == 10  # for the fingerprint
    assert len(stored(Frames(), least=30)) < len(first)
    assert len(stored(Frames(count=3), least=30)) < 10
    assert pickle.loads(pickle.dumps(found)).fingerprint() == found.fingerprint()


def test_damaged_cache_is_built_again(tmp_path, capsys, found):
    path = tmp_path / "objects.cache"
    path.write_bytes(b"damaged")
    again = build_objects(as_source(Frames(), "test"), reader(), None, str(path))
    assert again.fingerprint() == found.fingerprint()
    assert "damaged database of objects, which is built again" in capsys.readouterr().err


def test_mistakes_are_one_sentence(tmp_path):
    def build(source, limit=None, cache=None, **settings):
        return build_objects(as_source(source, "test"), reader(**settings), limit, cache)

    def endless():
        yield Frames()[0]

    with pytest.raises(DataError, match=r"no box of .*Frames has 100000 points or more"):
        build(Frames(), least=100_000)
    with pytest.raises(DataError, match=r"example 0 of .*: test: kind is int32\[2\], but the example has \d+ boxes"):
        build([{**Frames()[0], "kind": np.zeros(2, np.int32)}])
    with pytest.raises(DataError, match=r"a stream of unknown length.*Set `limit`"):
        build(endless)
    with pytest.raises(DataError, match=r"cannot be written: .* Choose another path"):
        build(Frames(count=2), cache=str(tmp_path / "missing" / "cache"))
    with pytest.raises(DataError, match="no entry 'boxes'"):
        build(ArraySource({"points": np.zeros((2, 3, 3))}))
    assert len(build(Frames(), limit=2)) < len(build(Frames()))
