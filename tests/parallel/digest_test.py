"""Digests depend only on the values of an array and their order, and reveal a corrupted copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from engine.parallel import digest as module
from engine.parallel.digest import Digests

MESH = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "int4", "int8", "uint32", "bool", "complex64")


@pytest.fixture(autouse=True, params=["program", "numpy"])
def small(request, monkeypatch) -> None:
    """Computes the digests of these small arrays by a program, as on accelerators, and by NumPy."""
    monkeypatch.setattr(module, "SMALL", -1 if request.param == "program" else 2**16)


def values(dtype: str = "float32", shape=(8, 24)) -> jax.Array:
    x = jax.random.normal(jax.random.key(1), shape)
    return x + 1j * x[::-1] if dtype == "complex64" else (x > 0 if dtype == "bool" else 3 * x).astype(dtype)


def placed(x, *spec) -> jax.Array:
    return jax.device_put(x, NamedSharding(MESH, PartitionSpec(*spec)))


def digest(x) -> str:
    return Digests({"x": x}).of({"x": x})["x"]


def by_hand(x: jax.Array) -> str:
    """Returns the digest as engine/parallel/digest.py documents it, computed in numpy."""
    flat = np.asarray(x).reshape(-1)
    words = flat.view(f"uint{8 * min(flat.itemsize, 4)}").astype(np.uint32)
    sums = []
    for factor, a, b in ((0x9E3779B1, 0x7FEB352D, 0x846CA68B), (0x85EBCA77, 0x2C1B3C6D, 0x297A2D39)):
        h = words ^ (np.arange(len(words), dtype=np.uint32) * np.uint32(factor))
        h = (h ^ (h >> np.uint32(16))) * np.uint32(a)
        h = (h ^ (h >> np.uint32(15))) * np.uint32(b)
        sums.append(int((h ^ (h >> np.uint32(16))).sum(dtype=np.uint32)))
    return f"{sums[0]:08x}{sums[1]:08x}"


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "int4"])  # numpy stores an int4 in 8 bits
def test_digest_equals_the_documented_sum(dtype):
    x = values(dtype)
    assert digest(x) == by_hand(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_digest_is_equal_on_any_mesh_and_in_any_shape(dtype):
    x = values(dtype)
    want = digest(x)
    for spec in [(), ("data",), ("fsdp", "data"), (None, ("fsdp", "data")), (("data", "fsdp"),)]:
        assert digest(placed(x, *spec)) == want, spec
    line = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[::-1])
    assert digest(jax.device_put(x, NamedSharding(line, PartitionSpec("x")))) == want
    assert digest(placed(x.reshape(2, 4, 24), None, "fsdp")) == want


def test_digest_is_equal_in_host_memory():
    x = values()
    kept = jax.device_put(x, NamedSharding(MESH, PartitionSpec("fsdp"), memory_kind="pinned_host"))
    assert digest(kept) == digest(x)


def test_digest_changes_with_every_bit():
    x = values(shape=(4, 4))
    found = {digest(x)}
    for bit in range(32):
        flipped = np.asarray(x).copy()
        flipped.view(np.uint32)[1, 2] ^= np.uint32(1 << bit)
        found.add(digest(jnp.asarray(flipped)))
    assert len(found) == 33


def test_digest_depends_on_the_order_of_values():
    x = np.asarray(values())
    swapped = x.copy()
    swapped[0], swapped[5] = x[5], x[0]
    assert digest(placed(swapped, "fsdp")) != digest(placed(x, "fsdp"))


def test_zeros_scalars_and_empty_arrays_have_digests():
    assert digest(jnp.zeros(3)) != digest(jnp.zeros(4))
    assert digest(jnp.int32(3)) != digest(jnp.int32(4))
    assert digest(jnp.zeros((0, 3))) == "0" * 16


def test_array_on_one_device_among_sharded_arrays_has_a_digest():
    state = {"split": placed(values(), "fsdp"), "alone": values()}
    assert len(set(Digests(state).of(state).values())) == 1


def test_digests_match_only_states_of_the_same_spec():
    state = {"x": placed(values(), "fsdp")}
    digests = Digests(state)
    assert digests.matches(state) and digests.matches({"x": placed(values() + 1, "fsdp")})
    for other in ({"y": state["x"]}, {"x": placed(values(), "data")}, {"x": placed(values("bfloat16"), "fsdp")}):
        assert not digests.matches(other)


def test_paths_are_the_joined_keys_of_the_tree():
    state = {"params": {"encoder/0/kernel": values()}, "step": jnp.int32(3)}
    assert list(Digests(state).of(state)) == ["params/encoder/0/kernel", "step"]


def test_rows_without_a_collective_give_equal_digests():
    state = {"whole": placed(values()), "split": placed(values(), "fsdp"), "parts": placed(values(), "data", "fsdp")}
    digests = Digests(state)
    assert digests.texts(digests.partial_sum(digests.rows(state))) == digests.of(state)
    assert len(set(digests.of(state).values())) == 1


def test_differing_reports_the_device_of_a_corrupted_copy():
    state = {"whole": placed(values()), "split": placed(values(), "fsdp"), "parts": placed(values(), "data", "fsdp")}
    digests = Digests(state)
    assert digests.copy_groups.T.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 0, 1, 2, 3], [0] * 8]
    assert digests.paths == ("parts", "split", "whole")
    assert digests.differing(np.asarray(digests.rows(state, gather=True))) == {}
    damaged = {name: with_a_flipped_bit(x, device=6) for name, x in state.items()}
    rows = np.asarray(digests.rows(damaged, gather=True))
    # With two copies it is unknown which one is right; corruption of a single copy cannot be detected.
    assert digests.differing(rows) == {"split": [2, 6], "whole": [6]}


def with_a_flipped_bit(x: jax.Array, device: int) -> jax.Array:
    """Returns the array with one bit changed in the copy on one device."""
    copies = [np.asarray(shard.data).copy() for shard in x.addressable_shards]
    copies[device].view(np.uint32)[0, 0] ^= np.uint32(1 << 7)
    placed = [jax.device_put(c, s.device) for c, s in zip(copies, x.addressable_shards, strict=True)]
    return jax.make_array_from_single_device_arrays(x.shape, x.sharding, placed)
