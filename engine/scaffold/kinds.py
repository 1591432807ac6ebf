"""The kinds of projects that `convoy init` writes, with the texts in which their files differ.

The files are in `templates/KIND`, those of every kind in `templates/common`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of project."""

    name: str
    summary: str
    """What it is, for the question and the help."""
    about: str
    """What the project does, for its README."""
    metric: str
    """The number that selects its best checkpoint."""
    own: str
    """How to use one's own data, for its README."""


_KINDS = (
    Kind(
        "images",
        "a classifier of images",
        "A classifier of images. `data.py` draws them, one circle, square or triangle each, so that the project trains "
        "without a download.",
        "val/accuracy",
        "Put the images into one folder per class, `images/train/CLASS/NAME.jpg` and `images/val/CLASS/NAME.jpg`. Let "
        '`train` in `data.py` return `engine.readers.ImageFolder("images/train", size=(32, 32))`, and `validation` the '
        "same for `images/val` (`pip install 'convoy-engine[images]'`). Set `classes` in `config.py`. The model takes "
        "images of any size.",
    ),
    Kind(
        "scenes",
        "a forecast of scenes with any number of agents (ragged data)",
        "A model of scenes with 3 to 40 agents, which predicts where every agent is next. `data.py` generates the "
        "scenes, so that the project trains without a download.",
        "val/distance_m",
        "Let `Scenes` in `data.py` read the scenes: `__getitem__` returns a dict with float32 arrays `[agents, ...]`, "
        "and `lengths` returns the number of agents of each scene. Set `LENGTHS`, to which scenes are padded; the "
        "largest must hold the longest scene. `engine.readers` has readers of Argoverse 2, nuScenes, Waymo and MCAP.",
    ),
    Kind(
        "text",
        "a language model of bytes",
        "A small language model, which predicts each byte of a text from those before it. The text is the "
        "documentation inside Python, so that the project trains without a download.",
        "val/bits_per_byte",
        "Write a text into `text.txt` next to `data.py`: it is read instead. For documents of different lengths, "
        "`engine.Packed` packs several into a row.",
    ),
    Kind(
        "table",
        "a prediction of one column of a table from the others",
        "A model of a table, which predicts one column from the others. The table is `braking.csv`, generated braking "
        "distances of cars, so that the project trains without a download.",
        "val/error_m",
        "Replace `braking.csv` by a table of numbers, and set `TARGET` in `data.py` to the column to predict, and "
        "`columns` in `config.py` to the number of the others. `engine.readers.Parquet` reads Parquet files (`pip "
        "install 'convoy-engine[parquet]'`).",
    ),
)
KINDS = {kind.name: kind for kind in _KINDS}
