"""Draws the pictures of driving workloads from trained runs: python docs/images/scenes.py [NAME ...]

The runs are those that docs/driving-workloads.md and docs/public-datasets.md train, below runs/ of the current folder;
a picture whose run is missing is left out with a sentence. The file matplotlibrc next to this one makes the backgrounds
transparent and the texts grey, so that the pictures fit a light and a dark page.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
GAP = 24  # pixels between two figures of a picture


@dataclasses.dataclass(frozen=True)
class Picture:
    """The figures of some examples of an evaluation, side by side."""

    run: str
    evaluation: str
    examples: tuple[int, ...] = (0,)
    width: int = 1400  # pixels at most
    page: str = "docs/driving-workloads.md"  # trains the run


PUBLIC = "docs/public-datasets.md"
PICTURES = {
    "forecast": Picture("runs/eth_ucy/zara2-k20-seed0", "test", (7,), 1000),
    "traffic": Picture("runs/forecast_sim", "test", (20, 3, 16), 2000),
    "motion_tokens": Picture("runs/motion_tokens", "test", (15,), 1000),
    "lidar": Picture("runs/lidar_sim", "heldout", (0,), 1000),
    "bev_sim": Picture("runs/bev_sim", "heldout"),
    "fusion_sim": Picture("runs/fusion_sim", "heldout"),
    "argoverse2_motion": Picture("runs/argoverse2_motion", "val", (4, 2, 6), 1400, PUBLIC),
    "waymo_motion": Picture("runs/waymo_motion", "validation", (2, 7, 1), 1400, PUBLIC),
    "kitti_lidar": Picture("runs/kitti_lidar", "train", (4, 6, 7), 1400, PUBLIC),
}


def figures(picture: Picture, folder: Path) -> list[Path]:
    """Draws the figures of a picture with `convoy predict` and returns their files."""
    command = [sys.executable, "-m", "engine.cli.main", "predict", picture.run, f"--evaluation={picture.evaluation}"]
    arguments = [f"--out={folder / 'found.npz'}", f"--figures={max(picture.examples) + 1}"]
    subprocess.run([*command, *arguments], check=True, env={**os.environ, "MATPLOTLIBRC": str(FOLDER)})
    return [folder / "found_figures" / f"example-{example}.png" for example in picture.examples]


def compose(files: list[Path], width: int, output: Path) -> None:
    """Writes images side by side, with the height of the lowest one and at most `width` pixels."""
    from PIL import Image

    images = [Image.open(file).convert("RGBA") for file in files]
    height = min(image.height for image in images)
    sizes = [(round(image.width * height / image.height), height) for image in images]
    picture = Image.new("RGBA", (sum(size[0] + GAP for size in sizes) - GAP, height))
    left = 0
    for image, size in zip(images, sizes, strict=True):
        picture.paste(image.resize(size, Image.Resampling.LANCZOS), (left, 0))
        left += size[0] + GAP
    picture.thumbnail((width, width), Image.Resampling.LANCZOS)
    picture.quantize(256, Image.Quantize.FASTOCTREE).save(output, optimize=True)


def main() -> None:
    """Draws the named pictures, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the pictures")
    args = parser.parse_args()
    if unknown := set(args.names) - set(PICTURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}. Pictures: {', '.join(PICTURES)}.")
    for name in args.names or PICTURES:
        picture = PICTURES[name]
        if not Path(picture.run).is_dir():
            print(f"{name}: left out, since there is no {picture.run}; {picture.page} trains it.")
            continue
        with tempfile.TemporaryDirectory(prefix="convoy-scenes-") as folder:
            compose(figures(picture, Path(folder)), picture.width, args.output / f"{name}.png")


if __name__ == "__main__":
    main()
