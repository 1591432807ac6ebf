"""The files and sources of `input.py`, which all of its readers share. It imports numpy and simplejpeg only.

A source gives examples by index. `augment(example, rng)`, where a source has it, is its random transform.
"""

import json
import os
import time
from pathlib import Path

import numpy as np

READERS = 2
"""Threads or worker processes of each reader."""
SETTLE_S = 3.0
CAMERAS, WIDTH, HEIGHT, CROP = 6, 1600, 900, (256, 704)
MOST_AGENTS, ROW_TOKENS = 128, 2048


class Cameras:
    """Six JPEG files, decoded at half size; `augment` crops, flips and brightens them."""

    batch_size = 4
    new_arrays = True  # an attribute that only the engine reads

    def __init__(self, folder):
        self.files = sorted(Path(folder).glob("*.jpg"))

    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        import simplejpeg  # pyright: ignore[reportMissingImports]

        images = []
        for camera in range(CAMERAS):
            data = self.files[(index * CAMERAS + camera) % len(self.files)].read_bytes()
            images.append(
                simplejpeg.decode_jpeg(data, "RGB", min_height=HEIGHT // 2, min_width=WIDTH // 2, min_factor=1)
            )
        return {"images": images, "label": np.int32(index)}

    def augment(self, example, rng):
        """Crops each image to 704 x 256, flips half of the examples, and changes the brightness."""
        rows, columns = CROP
        top = rng.integers(HEIGHT // 2 - rows + 1)
        left = rng.integers(WIDTH // 2 - columns + 1)
        flip, brightness = rng.random() < 0.5, rng.uniform(0.8, 1.2)
        levels = np.clip(np.arange(256) * brightness, 0, 255).astype(np.uint8)
        cut = np.empty((CAMERAS, rows, columns, 3), np.uint8)
        for to, image in zip(cut, example["images"], strict=True):
            part = image[top : top + rows, left : left + columns]
            np.take(levels, part[:, ::-1] if flip else part, out=to)
        return {"images": cut, "label": example["label"]}


class Sweeps:
    """Lidar sweeps, files of 1 MB; `augment` rotates them about the vertical axis."""

    batch_size = 8
    new_arrays = True

    def __init__(self, folder):
        self.files = sorted(Path(folder).glob("*.bin"))

    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        return {"points": np.fromfile(self.files[index % len(self.files)], np.float32).reshape(-1, 4)}

    def augment(self, example, rng):
        """Rotates the points by a random angle."""
        angle = rng.uniform(-np.pi, np.pi)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y = example["points"][:, 0], example["points"][:, 1]
        points = example["points"].copy()  # not a product of matrices: BLAS starts threads of its own
        points[:, 0], points[:, 1] = cos * x - sin * y, sin * x + cos * y
        return {"points": points}


class Scenes:
    """Scenes with a log-normal number of agents, in one file."""

    batch_size = 64

    def __init__(self, folder):
        self.agents = np.load(Path(folder) / "agents.npy", mmap_mode="r")
        self.ends = np.load(Path(folder) / "ends.npy")

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, index):
        return {"agents": np.asarray(self.agents[self.ends[index] : self.ends[index + 1]])}

    def lengths(self):
        """Returns the number of agents of each scene."""
        return np.diff(self.ends)


class Documents:
    """Token documents of log-normal length, in one file."""

    batch_size = 8

    def __init__(self, folder):
        self.tokens = np.load(Path(folder) / "tokens.npy", mmap_mode="r")
        self.ends = np.load(Path(folder) / "ends.npy")

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, index):
        return {"tokens": np.asarray(self.tokens[self.ends[index] : self.ends[index + 1]])}

    def lengths(self):
        """Returns the number of tokens of each document."""
        return np.diff(self.ends)


class Small:
    """Arrays of 28 x 28 bytes and a label, in memory."""

    batch_size = 256

    def __init__(self, folder):
        self.images = np.load(Path(folder) / "images.npy")
        self.labels = np.load(Path(folder) / "labels.npy")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.take(index)

    def take(self, indices):
        """Returns one example, or several in one array, as each reader takes them."""
        return {"image": self.images[indices], "label": self.labels[indices]}


SOURCES = {"cameras": Cameras, "lidar": Sweeps, "scenes": Scenes, "tokens": Documents, "small": Small}
TITLES = {
    "cameras": "six JPEG cameras of 1600 x 900",
    "lidar": "lidar sweeps of 1 MB",
    "scenes": "ragged scenes, padded",
    "tokens": "packed tokens",
    "small": "small arrays",
}


def open_source(name, folder):
    """Returns a source of `SOURCES` whose files are in the folder of its name."""
    return SOURCES[name](Path(folder) / name)


def write(name, folder, tiny=False):
    """Writes the files of a source into the folder of its name."""
    own = Path(folder) / name
    own.mkdir()
    rng = np.random.default_rng(0)
    if name == "cameras":
        import simplejpeg  # pyright: ignore[reportMissingImports]

        noise = rng.integers(0, 16, (HEIGHT, WIDTH, 3), np.uint8)
        for number in range(6 if tiny else 36):
            coarse = rng.integers(0, 240, (HEIGHT // 20, WIDTH // 20, 3), np.uint8)
            image = coarse.repeat(20, axis=0).repeat(20, axis=1) + noise
            (own / f"{number:02}.jpg").write_bytes(simplejpeg.encode_jpeg(image, quality=80))
    elif name == "lidar":
        for number in range(4 if tiny else 64):
            rng.normal(size=(65_536, 4)).astype(np.float32).tofile(own / f"{number:02}.bin")
    elif name == "scenes":
        counts = np.clip(rng.lognormal(np.log(15), 0.9, 200 if tiny else 5000), 1, MOST_AGENTS).astype(np.int64)
        np.save(own / "ends.npy", np.concatenate([[0], np.cumsum(counts)]))
        np.save(own / "agents.npy", rng.normal(size=(counts.sum(), 11, 7)).astype(np.float32))
    elif name == "tokens":
        counts = np.clip(rng.lognormal(np.log(500), 1.0, 200 if tiny else 5000), 1, 20_000).astype(np.int64)
        np.save(own / "ends.npy", np.concatenate([[0], np.cumsum(counts)]))
        np.save(own / "tokens.npy", rng.integers(0, 50_000, counts.sum()).astype(np.uint16))
    else:
        size = 1000 if tiny else 60_000
        np.save(own / "images.npy", rng.integers(0, 256, (size, 28, 28)).astype(np.uint8))
        np.save(own / "labels.npy", rng.integers(0, 10, size).astype(np.int32))


def rate(batches, batch_size, milliseconds):
    """Returns examples per second of an iterator of batches.

    Before the measurement it empties the buffers, and after it waits until they are filled and the readers idle.
    """
    seconds = milliseconds / 1e3
    begin, count = time.perf_counter(), 0
    while count < 3 * READERS or time.perf_counter() - begin < seconds / 4:
        next(batches)
        count += 1
    begin, count = time.perf_counter(), 0
    while count % READERS or time.perf_counter() - begin < seconds:
        next(batches)
        count += 1
    found = count * batch_size / (time.perf_counter() - begin)
    _settle()
    return found


def _settle():
    """Waits until this process and its children use no more CPU time."""
    before, end = -1.0, time.monotonic() + SETTLE_S
    while time.monotonic() < end and (now := _cpu_ticks()) != before:
        before = now
        time.sleep(0.1)


def _cpu_ticks():
    """Returns the CPU time of this process and its children, in ticks of the kernel."""
    own, total = str(os.getpid()), 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        if stat.parent.name == own or fields[1] == own:
            total += int(fields[11]) + int(fields[12])
    return total


def arguments(argv):
    """Returns the arguments of a reader: name of the source, folder of the files, and mode."""
    return json.loads(argv[1])
