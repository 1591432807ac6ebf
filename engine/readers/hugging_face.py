"""Reads folders that `save_to_disk` of Hugging Face `datasets` wrote, without that package (extra `parquet`)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config.errors import DataError, did_you_mean
from engine.mounts import local_path
from engine.readers.arrow import ArrowFormat
from engine.readers.decoders import Decoder
from engine.readers.extras import import_extra
from engine.readers.tables import CACHE_BYTES, Tables

STATE, SPLITS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"
ENCODED = ("Audio", "Image", "Pdf", "Video")  # types of features that are files


class HuggingFace(Tables):
    """Source of the rows of a dataset on disk, which is mapped into memory: a dict by column, as of `Parquet`.

    An image, a sound or a video is the bytes of its file. `decode={"image": engine.readers.DecodeImage()}` decodes
    images.
    """

    def __init__(
        self,
        folder: str,
        split: str | None = None,
        columns: Sequence[str] | None = None,
        decode: Mapping[str, str | Decoder] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        """Opens the folder of a dataset.

        Args:
            folder: path or bucket address of the folder.
            split: name of a split, if `save_to_disk` wrote several.
            columns: names of the columns to read. Default: those that the dataset was set to return.
            decode: column -> function of its value that returns what replaces it, or its dotted path.
            cache_bytes: as of `Parquet`.

        Raises:
            DataError: the folder holds no such dataset, or as for `Parquet`.
        """
        import_extra("pyarrow", "parquet", "Hugging Face datasets")
        path = _split_folder(local_path(os.path.expanduser(folder)), folder, split)
        state = _read_json(path / STATE)
        try:
            files = [str(path / file["filename"]) for file in state["_data_files"]]
            columns = state.get("_format_columns") if columns is None else columns
        except (TypeError, KeyError) as error:
            raise DataError(f"{path / STATE}: lists no files. Save the dataset again by save_to_disk.") from error
        if state.get("_indices_data_files"):
            raise DataError(
                f"{path}: its rows are chosen by a list of indices, which old versions of `datasets` saved. Load it "
                "with `datasets`, and save it again by save_to_disk."
            )
        if not files:
            raise DataError(f"{path}: the dataset has no examples. Save one that has.")
        if missing := [file for file in files if not os.path.exists(file)]:
            raise DataError(f"{missing[0]}: no such file, but {STATE} lists it. Copy the whole folder.")
        info = path / INFO
        self.features: dict[str, Any] = (_read_json(info).get("features") or {}) if info.exists() else {}
        """Types of the columns as `datasets` describes them; `features["label"]["names"]` are the names of classes."""
        described = {name: feature for name, feature in self.features.items() if isinstance(feature, dict)}
        encoded = [name for name, feature in described.items() if feature.get("_type") in ENCODED]
        super().__init__(files, _Format(tuple(encoded)), columns=columns, decode=decode, cache_bytes=cache_bytes)


class _Format(ArrowFormat):
    """Streams whose columns of files, such as images, have the entries `bytes` and `path`; the path may be null."""

    name = "Hugging Face dataset"

    def __init__(self, encoded: tuple[str, ...]):
        super().__init__()
        self._encoded = encoded

    def schema(self, path: str) -> Any:
        schema = super().schema(path)
        for name in self._encoded:
            number = schema.get_field_index(name)
            schema = schema.set(number, schema.field(number).with_type(schema.field(number).type.field("bytes").type))
        return schema

    def read(self, path: str, block: int | None, columns: list[str]) -> Any:
        import pyarrow.compute as pc

        table = super().read(path, block, columns)
        for name in self._encoded:
            if name in table.column_names:
                number = table.column_names.index(name)
                files = pc.call_function("struct_field", [table.column(number)], pc.StructFieldOptions("bytes"))
                table = table.set_column(number, name, files)
        return table


def _split_folder(path: Path, folder: str, split: str | None) -> Path:
    """Returns the folder of a split, or of the only dataset."""
    if (path / SPLITS).exists():
        splits = _read_json(path / SPLITS).get("splits", [])
        if split not in splits:
            near = "" if split is None else did_you_mean(split, splits)
            raise DataError(f"{folder}: split = {split!r}: allowed are {', '.join(splits)}.{near}")
        return path / str(split)
    if not (path / STATE).exists():
        raise DataError(
            f"{folder}: no {STATE}, so this is no dataset that save_to_disk of Hugging Face `datasets` wrote. Correct "
            "the path; read single files by engine.readers.Arrow or engine.readers.Parquet."
        )
    if split is not None:
        raise DataError(f"{folder}: split = {split!r}, but the folder holds one dataset without splits. Remove it.")
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}. Save the dataset again by save_to_disk.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is not a JSON object. Save the dataset again by save_to_disk.")
    return found
