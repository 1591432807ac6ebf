"""Reads folders of images, one folder for each class (extra `images`)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from engine.base.errors import DataError
from engine.data.examples import Example, evenly_spaced
from engine.data.source import SEPARATOR, BaseSource
from engine.readers.decode_image import DecodeImage
from engine.readers.files import FINGERPRINT_FILES, sampled_files
from engine.readers.fingerprints import digest
from engine.storage.mounts import local_path

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFolder(BaseSource):
    """Source of the images of a folder, sorted by name, with `CLASS/name.jpg` for each image.

    An example holds `image` uint8 `[height, width, channels]`, `label` int32, and as text `class` and `name`, the path
    in the folder.
    """

    new_arrays = True

    def __init__(
        self,
        folder: str,
        size: Sequence[int] | None = None,
        fit: Literal["crop", "stretch"] = "crop",
        gray: bool = False,
        classes: Sequence[str] | None = None,
        labels: bool = True,
        dtype: Literal["uint8", "uint16", "int32", "uint32", "float32"] = "uint8",
    ):
        """Lists the images of a folder.

        Args:
            folder: path or bucket address of the folder.
            size: (height, width) of the result, as of `DecodeImage`, and so are `fit`, `gray` and `dtype`.
            classes: names of the classes, in the order of their labels. Default: the folders with images, sorted.
            labels: False: all images of the folder and the folders in it, without `label` and `class`.

        Raises:
            DataError: there are no images, or a folder is none of `classes`; or a library is missing.
        """
        self.folder = str(local_path(os.path.expanduser(folder)))
        self._decode, self._labels = DecodeImage(size, fit, gray, dtype), labels
        if not os.path.isdir(self.folder):
            raise DataError(f"{folder}: no such folder. Correct the path.")
        self.names = sorted(_images(self.folder))
        """Path of each image in the folder."""
        self.known_names = {"image": self.names}
        if not self.names:
            raise DataError(f"{folder}: no images. Allowed endings: {', '.join(ENDINGS)}.")
        found = [name.partition("/")[0] if "/" in name else "" for name in self.names] if labels else []
        self.classes = sorted(set(found)) if classes is None else list(classes)
        """Names of the classes; the label is the number of a name in this list."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        for name, of in zip(self.names, found, strict=False):
            if not of:
                raise DataError(
                    f"{os.path.join(folder, name)} is in no folder of a class. Move it into one, or read without "
                    "labels: labels=False."
                )
            if of not in numbers:
                raise DataError(f"{os.path.join(folder, name)}: {of} is none of the {len(numbers)} `classes`. Add it.")
        self._numbers = np.array([numbers[of] for of in found], np.int32)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Example:
        """Returns one image with its class and its name."""
        name = self.names[index]
        try:
            image = self._decode(Path(self.folder, name).read_bytes())
        except (OSError, DataError) as error:
            raise DataError(f"{os.path.join(self.folder, name)}: {error}. Replace or remove the file.") from error
        example = {"image": image, "name": name}
        if self._labels:
            example |= {"label": self._numbers[index], "class": self.classes[self._numbers[index]]}
        return example

    def fingerprint(self) -> str:
        """Returns the number of images, a hash of all names, hashes of sampled bytes, and how images are decoded."""
        chosen = [os.path.join(self.folder, self.names[i]) for i in evenly_spaced(len(self), FINGERPRINT_FILES)]
        names = digest([*self.names, f"{self._labels}", *self.classes])
        parts = [f"{len(self)} images", f"names {names}", f"samples {digest(sampled_files(chosen))}"]
        return SEPARATOR.join([*parts, f"{len(self.classes)} classes", repr(self._decode)])


def _images(folder: str) -> list[str]:
    """Returns the paths of all images in a folder and the folders in it, without hidden ones."""
    found = []
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        where = os.path.relpath(path, folder).replace(os.sep, "/")
        prefix = "" if where == "." else f"{where}/"
        found += [prefix + name for name in files if name.lower().endswith(ENDINGS) and not name.startswith(".")]
    return found
