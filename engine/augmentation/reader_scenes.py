"""Descriptions of the examples that readers of driving datasets yield, for `engine.augmented`."""

from collections.abc import Sequence

from engine.augmentation.scene import Boxes, Camera, Lines, Points, Scene, Tracks

RADAR_VELOCITIES = (6, 8)  # vx, vy and their compensated values, in `engine.readers.radar_files.FIELDS`
BOX_ENTRIES = ("box_category", "box_points", "box_name")


def nuscenes_scene(sensors: Sequence[str] = ("LIDAR_TOP",), sweeps: int = 0) -> Scene:
    """Returns the description of the examples of `engine.readers.NuScenes` with the same sensors and sweeps.

    Lidar and radar points stay in the frame of their sensor, and change as the ego frame does.
    """
    points, cameras = [], []
    for sensor in sensors:
        pose = f"calibration/{sensor}/to_ego"
        if sensor.startswith("CAM"):
            cameras.append(Camera(sensor, f"calibration/{sensor}/intrinsics", to_ego=pose, pixels="edges"))
        elif sensor.startswith("RADAR"):
            points.append(Points(sensor, velocities=RADAR_VELOCITIES, to_ego=pose))
        else:
            points.append(Points(sensor, to_ego=pose, age=5 if sweeps else None))
    boxes = Boxes(
        pose="box_to_ego",
        size="box_size",
        size_order="width, length, height",
        others=(*BOX_ENTRIES, "box_instance"),
    )
    return Scene(points=points, boxes=boxes, cameras=cameras, world=("ego_to_world",), times=("time_s",))


def argoverse2_sensor_scene(boxes: bool = True) -> Scene:
    """Returns the description of the examples of `engine.readers.Argoverse2Sensor`, with or without boxes."""
    described = Boxes(pose="box_to_ego", size="box_size", others=(*BOX_ENTRIES, "box_track"))
    return Scene(points="lidar", boxes=described if boxes else (), world=("ego_to_city",), times=("time_s",))


def kitti_scene() -> Scene:
    """Returns the description of the examples of `engine.readers.KittiObject` with boxes in the frame of the lidar.

    That is KittiObject(folder, parts=("lidar", "boxes"), box_frame="lidar"). The calibration and images of other parts
    would not follow the points.
    """
    others = ("box_type", "box_name", "truncated", "occluded")
    return Scene(points="lidar", boxes=Boxes(pose="box_to_lidar", size="box_size", others=others))


def argoverse2_motion_scene(parts: Sequence[str] = ("tracks", "map")) -> Scene:
    """Returns the description of the examples of `engine.readers.Argoverse2Motion` with the same parts.

    Positions are in the frame of the city: move the origin to the scenario first, in a `transform` of the source.
    """
    tracks = Tracks("track_position", heading="track_heading", velocity="track_velocity", valid="track_valid")
    return _motion_scene(tracks, parts)


def waymo_scene(parts: Sequence[str] = ("tracks", "map", "signals")) -> Scene:
    """Returns the description of the examples of `engine.readers.WaymoScenario` with the same parts.

    Positions are in the frame of the scenario: move its origin first, as for `argoverse2_motion_scene`.
    """
    tracks = Tracks(
        "track_position",
        heading="track_heading",
        velocity="track_velocity",
        size="track_size",
        valid="track_valid",
    )
    return _motion_scene(tracks, parts)


def _motion_scene(tracks: Tracks, parts: Sequence[str]) -> Scene:
    lines = [Lines("map_points", valid="map_valid")] if "map" in parts else []
    if "signals" in parts:
        lines.append(Lines("signal_point"))
    return Scene(tracks=tracks if "tracks" in parts else (), lines=lines, times=("timestamps",))
