"""Reads the arrays of a step from a bucket with TensorStore, as `arrays.py` has written them with Orbax.

Each process reads only the parts that its devices hold, straight to memory. So the hashes of the files, which would
need all of their bytes, are not compared. The digests of the arrays are compared instead. Orbax itself reads `s3://`
only from Amazon, and needs another library for its metadata.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.base.errors import CheckpointError
from engine.base.files import read_text
from engine.base.types import PyTree
from engine.checkpoint import timeouts
from engine.checkpoint.manifest import SHOWN, DamagedCheckpoint, read_manifest
from engine.cluster import group
from engine.storage import object_store
from engine.storage.mounts import split_address

if TYPE_CHECKING:
    import jax

METADATA = "_METADATA"  # Orbax's file with the paths of the arrays
_ARRAY = "jax.Array"  # Orbax's type of an array leaf; the others are empty containers
READS = 8  # arrays that are read at the same time
_CACHE = {"total_bytes_limit": 100 << 20}  # cache for the nodes of OCDBT's tree
_DAMAGE = re.compile("DATA_LOSS|OUT_OF_RANGE")  # TensorStore has found a wrong checksum, or an object that is too short


def describe(folder: Path, address: str) -> PyTree:
    """Returns the stored tree, with jax.ShapeDtypeStruct as leaves.

    Args:
        folder: folder of the state in the copy of the small files.
        address: address of the state.

    Raises:
        CheckpointError: the bucket cannot be read.
        DamagedCheckpoint: the description of an array is damaged. Every process reads all of them.
        OSError, ValueError: the metadata cannot be read.
    """
    import jax

    stored = json.loads(read_text(folder / METADATA))["tree_metadata"].values()
    arrays = [entry["key_metadata"] for entry in stored if entry["value_metadata"]["value_type"] == _ARRAY]
    paths = [[str(key["key"]) for key in keys] for keys in arrays]
    tree: dict[str, Any] = {}
    for path, store in zip(paths, _open(folder, address, list(map(".".join, paths))), strict=True):
        inner = tree
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = jax.ShapeDtypeStruct(store.shape, store.dtype.numpy_dtype)
    return tree


def read(folder: Path, address: str, abstract_state: PyTree) -> PyTree:
    """Returns these arrays of a stored state; other stored arrays are not read. Every process calls it.

    Args:
        folder, address: as for `describe`.
        abstract_state: the stored arrays, as jax.ShapeDtypeStruct with the requested shardings and dtypes.

    Raises:
        CheckpointError: the bucket cannot be read.
        DamagedCheckpoint: an array is damaged, or differs from its digest in the manifest. Every process raises it,
            also if only one of them reads the damaged part.
    """
    import jax

    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract_state)
    if not leaves:  # `init.paths` leaves every array random
        return abstract_state
    names = [".".join(jax.tree_util.keystr((key,), simple=True) for key in path) for path, _ in leaves]
    stores, arrays, problems = _open(folder, address, names), [], list[str]()
    try:
        with ThreadPoolExecutor(READS) as threads:
            array = functools.partial(_array, folder, address)
            arrays = list(threads.map(array, stores, [leaf.sharding for _, leaf in leaves]))
    except DamagedCheckpoint as error:
        problems = error.problems
    found = group.decide(problems, _first_problems, "the arrays of a bucket", timeouts.READ_S)
    if found:
        raise DamagedCheckpoint(folder.parent, found)
    stored = jax.tree.unflatten(structure, arrays)
    _compare(folder.parent, stored)
    return jax.tree.map(lambda array, leaf: array.astype(leaf.dtype), stored, abstract_state)


def _first_problems(values: Mapping[int, list[str]], missing: list[int]) -> list[str]:
    """Returns what the processes have found, without duplicates, as far as an error names it."""
    return list(dict.fromkeys(problem for found in values.values() for problem in found))[:SHOWN]


def _open(folder: Path, address: str, names: Sequence[str]) -> list[Any]:
    """Returns the stored arrays as TensorStores."""
    import tensorstore

    found = split_address(address)
    assert found is not None
    scheme, bucket, path = found
    base = object_store.spec(scheme, bucket, f"{path}/")
    kvstore = {"driver": "ocdbt", "base": base, "cache_pool": "cache_pool#ocdbt"}
    context = object_store.context(**{"cache_pool#ocdbt": _CACHE})
    specs = [{"driver": "zarr", "kvstore": {**kvstore, "path": f"{name}/"}} for name in names]
    futures = [tensorstore.open(spec, open=True, read=True, context=context) for spec in specs]
    return [_result(folder, address, future) for future in futures]


def _array(folder: Path, address: str, store: Any, sharding: "jax.sharding.Sharding") -> "jax.Array":
    """Returns an array on its devices; a part that several devices hold is read once."""
    import jax

    indices = sharding.addressable_devices_indices_map(tuple(store.shape)).values()
    parts = {str(index): store[index].read() for index in indices if index is not None}
    return jax.make_array_from_callback(
        tuple(store.shape),
        sharding,
        lambda index: _result(folder, address, parts[str(index)]),
        dtype=store.dtype.numpy_dtype,
    )


def _result(folder: Path, address: str, future: Any) -> Any:
    try:
        return future.result()
    except ValueError as error:  # TensorStore raises it for every failure
        text = str(error).partition(" [tensorstore_spec")[0][:300]
        if _DAMAGE.search(text):
            raise DamagedCheckpoint(folder.parent, [f"{folder.name}: {text}"]) from error
        raise object_store.failure(CheckpointError, address, error) from error


def _compare(step: Path, state: Mapping[str, PyTree]) -> None:
    """Compares arrays with the manifest. Every process has it, and all come to the same result."""
    from engine.parallel.digest import Digests

    expected = read_manifest(step).arrays
    differing = [path for path, digest in Digests(state).of(state).items() if expected.get(path) != digest]
    if differing:
        raise DamagedCheckpoint(
            step, [f"the array {path} differs from its digest in the manifest" for path in differing]
        )
