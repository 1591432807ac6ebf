import pickle

import pytest

from engine.augmentation import Boxes, Camera, Points, Scene
from engine.base.errors import DataError


def test_dicts_and_names_stand_for_descriptions():
    found = Scene.parse(
        {"points": "lidar", "boxes": [{"table": "boxes", "z": "bottom", "others": ["label"]}], "world": "ego_to_world"}
    )
    assert found == Scene(
        points=Points("lidar"), boxes=Boxes("boxes", z="bottom", others=("label",)), world=("ego_to_world",)
    )
    assert pickle.loads(pickle.dumps(found)) == found
    assert found.boxes[0].entries == ("boxes", "label")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"pionts": "lidar"}, "scene has no field 'pionts'.*Did you mean points"),
        ({"boxes": {"tabel": "x"}}, "Scene.boxes has no field 'tabel'.*Did you mean table"),
        ({"points": {"coordinates": 2}}, "Scene.points: entry is missing"),
        ({"boxes": {"size": "size"}}, "names no positions"),
        (
            {"boxes": {"table": "x", "z": "botom"}},
            "Boxes.z = 'botom': allowed is .* Did you mean bottom",
        ),
        ({"cameras": {"image": "x", "pixels": "middle"}}, "Camera.pixels = 'middle'"),
        ({"cameras": {"image": "x", "to_ego": "a", "from_ego": "b"}}, "give to_ego or from_ego, not both"),
        ({"points": {"entry": "x", "to_ego": "p"}, "poses": "p"}, "Scene.poses has 'p', which is Points.to_ego of x"),
        ({"points": 3}, "Scene.points: found a int"),
        (3, "scene is a int, allowed are a Scene and a dict"),
    ],
)
def test_wrong_descriptions_are_one_sentence(given, text):
    with pytest.raises(DataError, match=text):
        Scene.parse(given)


def test_several_cameras_keep_their_order():
    assert [camera.image for camera in Scene(cameras=("a", Camera("b"))).cameras] == ["a", "b"]
