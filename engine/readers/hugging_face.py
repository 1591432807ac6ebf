"""Reads folders that `save_to_disk` of Hugging Face `datasets` wrote, without that package (extra `parquet`)."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.base.errors import DataError, did_you_mean
from engine.readers.arrow import ArrowFormat
from engine.readers.decoders import Decoder
from engine.readers.extras import import_extra
from engine.readers.tables import CACHE_BYTES, Grouping, Tables
from engine.storage.mounts import local_path

STATE, SPLITS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"


class HuggingFace(Tables):
    """Source of the rows of a dataset on disk, which is mapped into memory: a dict by column, as of `Parquet`.

    An image, a sound or a video, also in a list or a struct, is the bytes of its file.
    `decode={"image": engine.readers.DecodeImage()}` decodes images.
    """

    def __init__(
        self,
        folder: str,
        split: str | None = None,
        columns: Sequence[str] | Mapping[str, Any] | None = None,
        decode: Mapping[str, str | Decoder] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ):
        """Opens the folder of a dataset.

        Args:
            folder: path or bucket address of the folder.
            split: name of a split, if `save_to_disk` wrote several.
            columns: as of `Parquet`. Default: those that the dataset was set to return.
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
        super().__init__(
            files, _Format(cache_bytes), Grouping(), columns=columns, decode=decode, cache_bytes=cache_bytes
        )


class _Format(ArrowFormat):
    """Streams in which a file, such as an image, has the entries `bytes` and `path`; the path may be null."""

    name = "Hugging Face dataset"

    def schema(self, path: str) -> Any:
        import pyarrow as pa

        schema = super().schema(path)
        types = [files_as_bytes(pa.nulls(0, field.type)).type for field in schema]
        return pa.schema([field.with_type(kind) for field, kind in zip(schema, types, strict=True)])

    def read(self, path: str, block: int | None, columns: list[str]) -> Any:
        import pyarrow as pa

        table = super().read(path, block, columns)
        for number, column in enumerate(table.columns):
            kind = files_as_bytes(pa.nulls(0, column.type)).type
            if kind != column.type:
                files = pa.chunked_array([files_as_bytes(chunk) for chunk in column.chunks], kind)
                table = table.set_column(number, table.column_names[number], files)
        return table


def files_as_bytes(array: Any) -> Any:
    """Returns a pyarrow array in which each struct of `bytes` and `path` is its bytes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    missing = array.is_null() if array.null_count else None
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        if sorted(names) == ["bytes", "path"]:
            return pc.call_function("struct_field", [array], pc.StructFieldOptions("bytes"))
        children = [files_as_bytes(array.field(number)) for number in range(kind.num_fields)]
        return pa.StructArray.from_arrays(children, names, mask=missing) if children else array
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = pa.array(
            array.offsets.to_numpy() if len(array) else [0], array.offsets.type
        )  # a copy without a slice
        return type(array).from_arrays(offsets, files_as_bytes(array.values), mask=missing)
    if pa.types.is_fixed_size_list(kind):
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        return type(array).from_arrays(files_as_bytes(values), kind.list_size, mask=missing)
    return array


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
