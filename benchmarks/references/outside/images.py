"""Writes random images and their pixels into FOLDER/images.npz, by OpenCV and Pillow. Imports no engine.

FOLDER/inputs.json has seeds as "sets". The pixels are those that OpenCV reads from files that it has written, and those
that Pillow gives as RGB for the modes of Pillow. results.json has the names of the kinds.
"""

import io
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

EXIF_ORIENTATION = 274


def opencv_kinds(rng, height, width):
    """Yields (kind, ending, pixels in the order of OpenCV)."""
    for channels, name in ((1, "gray"), (3, "color"), (4, "alpha")):
        shape = (height, width) if channels == 1 else (height, width, channels)
        for dtype, bits in ((np.uint8, 8), (np.uint16, 16)):
            pixels = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
            yield f"opencv png {name} {bits}", "png", pixels
            if channels == 1 or bits == 8:
                yield f"opencv tiff {name} {bits}", "tiff", pixels
    yield "opencv tiff gray float32", "tiff", rng.normal(size=(height, width)).astype(np.float32)
    smooth = np.linspace(0, 250, height * width).reshape(height, width).astype(np.uint8)
    yield "opencv jpeg gray", "jpg", smooth
    yield "opencv jpeg color", "jpg", np.stack([smooth, smooth.T.reshape(smooth.shape), smooth[::-1]], axis=-1)


def pillow_kinds(rng, height, width):
    """Yields (kind, ending, image, settings of its file)."""
    base = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    for mode, endings in {
        "1": ("png", "tiff"),
        "L": ("png", "tiff", "bmp"),
        "LA": ("png", "tiff"),
        "P": ("png", "tiff", "gif"),
        "RGB": ("png", "tiff", "bmp", "ppm"),
        "RGBA": ("png", "tiff"),
        "CMYK": ("tiff",),
    }.items():
        for ending in endings:
            yield f"pillow {ending} {mode}", ending, base.convert(mode), {}
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = int(rng.integers(2, 9))
    yield "pillow png RGB with orientation", "png", base, {"exif": exif}


def main(folder):
    """Writes the images and their pixels, and the kinds."""
    found, kinds = {}, []
    for seed in json.loads((folder / "inputs.json").read_text())["sets"]:
        rng = np.random.default_rng(seed)
        height, width = (int(size) for size in rng.integers(2, 24, 2))
        kinds = []
        for kind, ending, pixels in opencv_kinds(rng, height, width):
            _, encoded = cv2.imencode(f".{ending}", pixels)
            read = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
            found[f"{seed} {kind} file"] = encoded
            found[f"{seed} {kind} pixels"] = read if read.ndim == 2 else read[:, :, 2::-1]
            kinds.append(kind)
        for kind, ending, image, settings in pillow_kinds(rng, height, width):
            out = io.BytesIO()
            image.save(out, Image.registered_extensions()[f".{ending}"], **settings)
            with Image.open(io.BytesIO(out.getvalue())) as stored:
                found[f"{seed} {kind} pixels"] = np.array(stored.convert("RGB"))
            found[f"{seed} {kind} file"] = np.frombuffer(out.getvalue(), np.uint8)
            kinds.append(kind)
    np.savez_compressed(folder / "images.npz", **found)
    (folder / "results.json").write_text(json.dumps(kinds) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
