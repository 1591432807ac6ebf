"""A digest of each array of a state, computed where the array lies and the same on any mesh.

Owns: the sum that is taken over an array's bits, and how what single devices found is put together: one digest for each
array, or one for each copy of it. Does not own: what is done about a difference (`checkpoint/`, `resilience/`).

Terms. *Place*: the number of an element in row-major order in the whole array, modulo 2^32. *Digest*: two unsigned
32-bit sums, modulo 2^32, over all elements of an array of `mix(bits of the element, its place)`, where `mix` differs
between the two. *Row*: what one device found in its own part of each array, with the places of the whole array.
*Holder*: a device that has a copy of the same part as another.

A sum of integers is exact in any order, so a digest depends on the values and their order alone: not on the mesh, the
number of processes or the shape (a reshape keeps it; so it is the same for a stack of layers in another fold). `mix` is
a bijection of the bits for each place: a change of any one element is always seen. Other changes escape with a chance
of 2^-64, but for an exchange of elements that lie a multiple of 2^32 places apart, which is never seen.

The finalizers of `mix` are those of Wellons, Hash Function Prospector (2018): lowbias32 and its runner-up.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from engine.parallel.memory import device_memory
from engine.types import PyTree

_LANES = ((0x9E3779B1, 0x7FEB352D, 0x846CA68B), (0x85EBCA77, 0x2C1B3C6D, 0x297A2D39))
"""For each of the two sums: the factor of the place, and the factors of the finalizer; all are odd."""


class Digests:
    """The digests of a state of one form, compiled once.

    Args:
        abstract_state: pytree of things with `shape`, `dtype` and `sharding` (arrays or jax.ShapeDtypeStruct), all on
            the devices of one mesh, or on one device.

    Attributes:
        paths: of the arrays, keys joined by "/", in the order of the tree; those of all results below.
        holders: int `[devices, arrays]`, for each array which devices, in the order of `mesh.devices.flat`, hold the
            same part of it: they have the same number, that of the first of them.
    """

    def __init__(self, abstract_state: PyTree):
        leaves = jax.tree_util.tree_flatten_with_path(abstract_state)[0]
        self._form = _form(abstract_state)
        self.paths = tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
        arrays = [leaf for _, leaf in leaves]
        shardings = [_named(array.sharding) for array in arrays]
        mesh = max((sharding.mesh for sharding in shardings), key=lambda mesh: mesh.size)
        assert isinstance(mesh, Mesh)
        self.mesh, devices = mesh, list(mesh.devices.flat)
        whole = NamedSharding(mesh, PartitionSpec())
        # A number that was put nowhere lies on one device, beside arrays on all of them.
        self._shardings = [s if s.mesh.size == mesh.size else whole for s in shardings]
        known: dict[
            tuple[NamedSharding, tuple[int, ...]], list[int]
        ] = {}  # many arrays of a large state are alike, on many devices
        for s, a in zip(self._shardings, arrays, strict=True):
            if (s, a.shape) not in known:
                known[s, a.shape] = _parts(s, a.shape, devices)
        parts = [known[s, a.shape] for s, a in zip(self._shardings, arrays, strict=True)]
        self.holders = np.array(parts, np.int32).reshape(len(arrays), len(devices)).T
        self._here = jax.jit(_together, out_shardings=NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
        self._everywhere = jax.jit(_together, out_shardings=whole)

    def fits(self, state: PyTree) -> bool:
        """Whether a state is of the form that this was made for."""
        return _form(state) == self._form

    def rows(self, state: PyTree, everywhere: bool = False) -> jax.Array:
        """Starts to compute what each device holds and returns; the state may be donated to a later program.

        Args:
            state: arrays of the form that this was made for.
            everywhere: tell every process the rows of all devices, by one collective; all processes must call then.
                Otherwise nothing is told, and a process can read the rows of its own devices.

        Returns:
            uint32 `[devices, arrays, 2]`: the digest of each device's own copy of its part of each array.
        """
        arrays = jax.tree.leaves(state)
        size = self.mesh.size
        rows = [
            _row(x if len(x.sharding.device_set) == size else jax.device_put(x, sharding), sharding)
            for x, sharding in zip(arrays, self._shardings, strict=True)
        ]
        return (self._everywhere if everywhere else self._here)(rows)

    def counted(self, rows: jax.Array) -> np.ndarray:
        """Returns this process's part of the digests, uint32 `[arrays, 2]`; waits for the rows.

        Of the holders of a part the first one counts. The sum over all processes, modulo 2^32, is the digest.
        """
        total = np.zeros((len(self.paths), 2), np.uint32)
        for device, row in _read(rows):
            total += row * (self.holders[device] == device)[:, None].astype(np.uint32)
        return total

    def of(self, state: PyTree) -> dict[str, str]:
        """Returns path -> digest of each whole array, the same in every process; all processes call it together."""
        rows = np.asarray(self.rows(state, everywhere=True))
        counts = self.holders == np.arange(len(rows))[:, None]
        return self.texts((rows * counts[..., None].astype(np.uint32)).sum(0, dtype=np.uint32))

    def texts(self, digests: np.ndarray) -> dict[str, str]:
        """Returns path -> digest as 16 hexadecimal digits, of uint32 `[arrays, 2]`."""
        return {path: f"{a:08x}{b:08x}" for path, (a, b) in zip(self.paths, digests.tolist(), strict=True)}

    def differing(self, rows: np.ndarray) -> dict[str, list[int]]:
        """Compares the copies of each part of each array.

        Args:
            rows: of all devices, as `rows(state, everywhere=True)` gives them.

        Returns:
            path -> positions in `mesh.devices.flat` of devices whose copy is not that of most holders of its part
            (where as many have the one as the other, all of them). Empty where all copies agree.
        """
        found: dict[str, list[int]] = {}
        for array, path in enumerate(self.paths):
            odd = [
                device
                for part in np.unique(self.holders[:, array])
                for device in _minority(np.flatnonzero(self.holders[:, array] == part), rows[:, array])
            ]
            if odd:
                found[path] = sorted(odd)
        return found


@functools.partial(jax.jit, static_argnames="sharding")
def _row(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """The rows of one array, uint32 `[devices, 2]`; compiled once for all arrays of a shape, dtype and sharding.

    A program of all arrays of a large state would take half a minute to compile.
    """
    mesh, spec = sharding.mesh, PartitionSpec(*sharding.spec)
    assert isinstance(mesh, Mesh)
    if sharding.memory_kind not in (None, device_memory(mesh)):
        array = jax.device_put(array, NamedSharding(mesh, spec))
    local = functools.partial(_local_digest, spec=spec, shape=array.shape)
    by_device = PartitionSpec(mesh.axis_names)
    return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=by_device, check_vma=False)(array)


def _local_digest(part: jax.Array, *, spec: PartitionSpec, shape: tuple[int, ...]) -> jax.Array:
    """One device's row for one array, uint32 `[1, 2]`; to be traced under shard_map over the whole mesh."""
    place = jnp.zeros(part.shape, jnp.uint32)
    stride = 1
    for d in reversed(range(part.ndim)):
        axes = spec[d] if d < len(spec) else None
        axes = () if axes is None else axes if isinstance(axes, tuple) else (axes,)
        first = lax.axis_index(axes).astype(jnp.uint32) * np.uint32(part.shape[d]) if axes else np.uint32(0)
        place += (lax.broadcasted_iota(jnp.uint32, part.shape, d) + first) * np.uint32(stride % 2**32)
        stride *= shape[d]
    words = _words(part)  # one, or two for numbers of 64 bits
    places = [place * np.uint32(len(words)) + np.uint32(i) for i in range(len(words))]
    total = jnp.zeros(2, jnp.uint32)
    for word, place in zip(words, places, strict=True):
        mixed = [_mix(word ^ (place * np.uint32(factor)), *factors) for factor, *factors in _LANES]
        # One pass for both sums: on CPU 20 times faster than two.
        sums = lax.reduce(
            tuple(mixed), (np.uint32(0), np.uint32(0)), lambda x, y: (x[0] + y[0], x[1] + y[1]), tuple(range(part.ndim))
        )
        total += jnp.stack(sums)
    return total[None]


def _form(state: PyTree) -> tuple[PyTree, list[tuple]]:
    leaves, tree = jax.tree.flatten(state)
    return tree, [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves]


def _together(rows: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack(rows, 1)


def _words(x: jax.Array) -> list[jax.Array]:
    """The bits of each element as numbers of type uint32."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return [word for part in (x.real, x.imag) for word in _words(part)]
    if x.dtype == jnp.bool_:
        return [x.astype(jnp.uint32)]
    bits = jnp.iinfo(x.dtype).bits if jnp.issubdtype(x.dtype, jnp.integer) else jnp.finfo(x.dtype).bits
    if bits == 64:
        pair = lax.bitcast_convert_type(x, jnp.uint32)
        return [pair[..., 0], pair[..., 1]]
    return [lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)]


def _mix(h: jax.Array, first: int, second: int) -> jax.Array:
    h = (h ^ (h >> 16)) * np.uint32(first)
    h = (h ^ (h >> 15)) * np.uint32(second)
    return h ^ (h >> 16)


def _named(sharding: Sharding) -> NamedSharding:
    """The sharding over a mesh, for an array on a single device one of that device."""
    if isinstance(sharding, SingleDeviceSharding):
        (device,) = sharding.device_set
        return NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec(), memory_kind=sharding.memory_kind)
    assert isinstance(sharding, NamedSharding)
    return sharding


def _parts(sharding: NamedSharding, shape: tuple[int, ...], devices: Sequence[object]) -> list[int]:
    """For each device the position of the first one that holds the same part."""
    parts = sharding.devices_indices_map(shape)
    firsts: dict[tuple, int] = {}
    numbers = []
    for position, device in enumerate(devices):
        part = tuple(s.indices(size)[:2] for s, size in zip(parts[device], shape, strict=True))
        numbers.append(firsts.setdefault(part, position))
    return numbers


def _read(rows: jax.Array) -> list[tuple[int, np.ndarray]]:
    """(position of the device, its row) of this process's devices."""
    return [(shard.index[0].indices(len(rows))[0], np.asarray(shard.data)[0]) for shard in rows.addressable_shards]


def _minority(devices: np.ndarray, rows: np.ndarray) -> list[int]:
    """Those of the holders of a part whose digests are not the most frequent; all where there is no majority."""
    values, which, counts = np.unique(rows[devices], axis=0, return_inverse=True, return_counts=True)
    if len(values) == 1:
        return []
    most = np.flatnonzero(counts == counts.max())
    return [int(device) for device, w in zip(devices, which.ravel(), strict=True) if len(most) > 1 or w != most[0]]
