from pathlib import Path

import numpy as np
import pytest

import engine
from engine.augmentation import (
    Flip,
    Rotate,
    SampleObjects,
    Scale,
    argoverse2_motion_scene,
    argoverse2_sensor_scene,
    kitti_scene,
    nuscenes_scene,
    waymo_scene,
)
from engine.augmentation.motion import Motion, move
from engine.plot import project
from engine.readers import Argoverse2Motion, Argoverse2Sensor, KittiObject, NuScenes, TFRecord, WaymoScenario
from tests.augmentation.scenes import assert_close, assert_same, flat
from tests.readers import driving_files

FIXTURES = Path(driving_files.__file__).parent / "fixtures"
SENSORS = ("LIDAR_TOP", "CAM_FRONT", "RADAR_FRONT")
STEPS = [Rotate(), Scale(), Flip(y=1.0)]


@pytest.fixture(scope="module")
def nuscenes(tmp_path_factory):
    folder = driving_files.write_nuscenes(tmp_path_factory.mktemp("nuscenes"))
    return NuScenes(str(folder), "v1.0-mini", sensors=SENSORS, sweeps=1)


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    folder = driving_files.write_kitti(tmp_path_factory.mktemp("kitti") / "data", rigid=True)
    return KittiObject(str(folder), parts=("lidar", "boxes"), box_frame="lidar")


def sources(nuscenes, kitti):
    scenarios = TFRecord(str(FIXTURES / "scenarios.tfrecord"), WaymoScenario())
    return [
        (nuscenes, nuscenes_scene(SENSORS, sweeps=1)),
        (kitti, kitti_scene()),
        (Argoverse2Sensor(str(FIXTURES / "argoverse2_layout" / "sensor")), argoverse2_sensor_scene()),
        (Argoverse2Motion(str(FIXTURES / "argoverse2_layout" / "motion")), argoverse2_motion_scene()),
        (scenarios, waymo_scene()),
    ]


def test_examples_of_the_readers_fit_and_return(nuscenes, kitti):
    for source, scene in sources(nuscenes, kitti):
        found = engine.augmented(source, STEPS, scene)
        example = source[0]
        assert flat(found.transform(example, np.random.default_rng(0))).keys() == flat(example).keys()
        turned = move(example, scene, Motion.rotation(0.4), "test")
        changed = {path for path, value in flat(turned).items() if value is not flat(example)[path]}
        described = {"track_position", "LIDAR_TOP", "lidar"} & flat(example).keys()
        assert described <= changed
        back = flat(move(turned, scene, Motion.rotation(0.4).inverse, "test"))
        for path in changed:
            assert_close({path: back[path]}, {path: flat(example)[path]}, 1e-3)
        assert_same(example, source[0])


def test_lidar_of_nuscenes_is_seen_at_the_same_pixels(nuscenes):
    scene, example = nuscenes_scene(SENSORS, sweeps=1), nuscenes[0]

    def seen(found):
        calibration, points = found["calibration"], found["LIDAR_TOP"][:, :3].astype(np.float64)
        lidar, camera = (calibration[name]["to_ego"].astype(np.float64) for name in SENSORS[:2])
        relative = np.linalg.inv(camera) @ lidar
        points = points @ relative[:3, :3].T + relative[:3, 3]
        return project(points, calibration["CAM_FRONT"]["intrinsics"]), points[:, 2]

    pixels, depth = seen(example)
    near = np.abs(depth) > 0.3  # the poses of the fixture are random: the points are behind the camera
    assert near.any()
    turned, _ = seen(move(example, scene, Motion.rotation(0.7), "test"))
    np.testing.assert_allclose(turned[near], pixels[near], rtol=1e-2, atol=0.5)
    mirrored, _ = seen(move(example, scene, Motion.flip(False, True), "test"))
    width = example["CAM_FRONT"].shape[1]
    np.testing.assert_allclose(width - mirrored[near, 0], pixels[near, 0], rtol=1e-2, atol=0.5)


def test_objects_of_a_reader_keep_their_text():
    source = Argoverse2Sensor(str(FIXTURES / "argoverse2_layout" / "sensor"))
    scene = argoverse2_sensor_scene()
    box = source[1]
    inside = np.tile(box["box_to_ego"][0, :3, 3], (6, 1))

    class Filled(list):
        def fingerprint(self):
            return "filled"

    filled = Filled([{**box, "lidar": np.concatenate([inside, inside], 1).astype(np.float32)}])
    far = {**source[2], "lidar": source[0]["lidar"]}
    found = SampleObjects(1, label="box_name", scene=scene).prepared(engine.augmented(filled, STEPS, scene).source)
    after = found.apply(far, np.array([0]))
    assert after["box_name"].tolist() == ["REGULAR_VEHICLE"] and after["box_track"].tolist() == ["track-0"]
    assert after["box_to_ego"].shape == (1, 4, 4) and len(after["lidar"]) == len(far["lidar"]) + 6


def test_parts_leave_out_their_entries():
    assert waymo_scene(["tracks"]).lines == () and argoverse2_motion_scene(["map"]).tracks == ()
    assert argoverse2_sensor_scene(boxes=False).boxes == ()
    assert nuscenes_scene().points[0].age is None
