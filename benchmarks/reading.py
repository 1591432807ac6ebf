"""Measures the processor time of reading the cameras and the lidar sweeps of nuScenes, as ratios to the plain way.

tools/bazel run //benchmarks:reading [-- --turns 20]
python -m benchmarks.reading

cameras  six JPEG images of 1600 x 900, at 0.44 of their size: `DecodeImage`, and a full decode and Pillow's resize
sweeps   ten accumulated sweeps of samples that follow each other, of which nine are shared, by a cache of 32 MiB

All run alternately in one thread. Files are in the page cache of the system, where reading is cheapest.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.report import Row
from engine.readers import DecodeImage
from engine.readers.lidar_files import read_points
from engine.readers.nuscenes_sweeps import Sweeps

CAMERAS, WHOLE, CROP = 6, (396, 704), (140, 0, 256, 704)
POINTS, SWEEPS = 34_720, 10
CACHE_BYTES = 32 * 2**20  # 45 sweeps

type Readers = Mapping[str, Callable[[], object]]


def cameras(seed: int = 0) -> Readers:
    """Returns what reads six images, by name."""
    import simplejpeg

    images = [_jpeg(np.random.default_rng(seed + number)) for number in range(CAMERAS)]

    def by_pillow(image: bytes) -> np.ndarray:
        from PIL import Image

        whole = Image.fromarray(simplejpeg.decode_jpeg(image, "RGB"))
        return np.array(whole.resize((WHOLE[1], WHOLE[0]), Image.Resampling.BILINEAR))

    whole, part = DecodeImage(WHOLE, "stretch"), DecodeImage(WHOLE, "stretch", crop=CROP)
    top, left, height, width = CROP
    return {
        "plain": lambda: [by_pillow(image) for image in images],
        "plain part": lambda: [by_pillow(image)[top : top + height, left : left + width].copy() for image in images],
        "whole": lambda: [whole(image) for image in images],
        "part": lambda: [part(image) for image in images],
    }


def _jpeg(rng: np.random.Generator) -> bytes:
    """Returns an image of about 200 KB, as those of nuScenes: shapes of several sizes, and noise."""
    import simplejpeg
    from PIL import Image

    pixels = rng.normal(128, 3, (900, 1600, 1))
    for blocks, strength in ((1, 60), (4, 30), (12, 12), (37, 6)):
        coarse = strength * rng.normal(0, 1, (9 * blocks, 16 * blocks, 3)).astype(np.float32)
        layers = [Image.fromarray(coarse[..., c]).resize((1600, 900), Image.Resampling.BICUBIC) for c in range(3)]
        pixels = pixels + np.stack([np.asarray(layer) for layer in layers], -1)
    return simplejpeg.encode_jpeg(pixels.clip(0, 255).astype(np.uint8), quality=75, colorsubsampling="420")


def sweeps(folder: Path, points: int = POINTS, samples: int = 40) -> Readers:
    """Returns what reads the sweeps of the next sample, by name. Each sweep of the lidar is a sample here."""
    rng = np.random.default_rng(0)
    for number in range(samples):
        rng.normal(0, 20, (points, 5)).astype(np.float32).tofile(folder / f"{number}.bin")
    pose = {"translation": [1, 2, 0], "rotation": [0.995, 0, 0, 0.0998]}
    rows: list[dict[str, Any]] = [
        {"token": str(number), "timestamp": 50_000 * number, "prev": str(number - 1) if number else ""}
        | {"filename": f"{number}.bin", "ego_pose_token": "pose", "calibrated_sensor_token": "lidar"}
        for number in range(samples)
    ]
    tables = {"sample_data": {row["token"]: row for row in rows}}
    tables |= {"calibrated_sensor": {"lidar": pose}, "ego_pose": {"pose": pose}}
    path = [str(folder / row["filename"]) for row in rows]

    def reader(count: int, cache_bytes: int, with_key: bool = True) -> Callable[[], object]:
        found, number = Sweeps(rows, tables, count, cache_bytes), samples - 1

        def read() -> np.ndarray:
            nonlocal number
            number = SWEEPS if number == samples - 1 else number + 1
            own = found.read(path[number]) if with_key else np.empty((0, 5), np.float32)
            return found.added(own, number, str(folder), np.eye(4))

        return read

    in_memory = reader(SWEEPS - 1, 2**40)
    for _ in range(samples):  # keeps every file, so that what is left is the transform
        in_memory()

    def read_and_transform() -> object:
        return read_points(path[0], 5), in_memory()

    return {
        "cached": reader(SWEEPS - 1, CACHE_BYTES),
        "uncached": reader(SWEEPS - 1, 0),
        "read and transform": read_and_transform,
        "one": reader(1, 0, with_key=False),
    }


def measure(readers: Readers, turns: int, repeats: int) -> dict[str, tuple[float, ...]]:
    """Returns the milliseconds of processor time of each reader, `turns` times."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for turn in range(turns):
        for name, read in list(readers.items())[:: 1 if turn % 2 == 0 else -1]:
            start = time.thread_time()
            for _ in range(repeats):
                read()
            times[name].append(1e3 * (time.thread_time() - start) / repeats)
    return {name: tuple(values) for name, values in times.items()}


def rows_of(name: str, times: Mapping[str, tuple[float, ...]]) -> Iterator[Row]:
    """Yields the ratios of "cameras" or "sweeps"."""
    shown = {
        "cameras": (
            ("six cameras at 0.44 of their size / full decode and Pillow's resize", "whole", "plain", 0.5),
            ("the same, of which 256 of 396 rows are kept", "part", "plain part", 0.5),
        ),
        "sweeps": (
            (
                "ten sweeps of samples in order / reading one and the transform of ten",
                "cached",
                "read and transform",
                1.3,
            ),
            ("the same without a cache", "uncached", "read and transform", None),
            ("ten sweeps of samples in order / reading one and its own transform", "cached", "one", None),
        ),
    }
    for what, above, below, at_most in shown[name]:
        note = f"{_median(times[above]):.1f} ms; {_median(times[below]):.1f} ms"
        yield Row(what, report.ratios(times[above], times[below]), at_most=at_most, note=note)


def _median(values: tuple[float, ...]) -> float:
    return float(np.median(values))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of this benchmark."""
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="reads in a turn")
    parser.add_argument("--points", type=int, default=POINTS, help="points of a sweep")


def run(args: argparse.Namespace) -> Iterator[Row]:
    """Measures both and yields the rows."""
    yield from rows_of("cameras", measure(cameras(), args.turns, args.repeats))
    with tempfile.TemporaryDirectory(prefix="convoy-reading-") as folder:
        yield from rows_of("sweeps", measure(sweeps(Path(folder), args.points), args.turns, args.repeats))


if __name__ == "__main__":
    report.main(__doc__, add_arguments, run, tiny=("--turns=1", "--repeats=1", "--points=100"))
