"""What a stored program depends on. tests/compile/program_store_test.py loads programs by it."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from engine.compile.key import SETTINGS, describe_program, flags, places, without_locations


def facts(function, **options) -> dict[str, str]:
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    return describe_program(jax.jit(function).lower(x), Mesh(np.array(jax.devices()[:1]), "x"), options)


def test_settings_of_jax_are_in_the_key_or_change_stablehlo():
    def draw(x):
        return x @ x + jax.random.normal(jax.random.key(0), (8, 8))

    plain = facts(draw)
    assert all(name in plain["settings"] for name in SETTINGS)
    for name, value in (("jax_threefry_partitionable", False), ("jax_default_matmul_precision", "highest")):
        before = jax.config.values[name]
        jax.config.update(name, value)
        try:
            other = facts(draw)
        finally:
            jax.config.update(name, before)
        assert {key for key in plain if plain[key] != other[key]} == {"program"}, name


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_each_part_changes_the_key(monkeypatch):
    """Only what cannot vary on one machine is replaced: the versions and the features of the CPU."""
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    lowered, other = jax.jit(lambda x: x @ x).lower(x), jax.jit(lambda x: x @ x + 1).lower(x)

    def key(*order: int, program=lowered, **options) -> dict[str, str]:
        return describe_program(program, Mesh(np.array(jax.devices())[list(order or (0, 1))], "x"), options)

    plain = key()
    assert changed(plain, key()) == set()
    assert changed(plain, key(program=other)) == {"program"}
    assert changed(plain, key(1, 0)) == {"order of devices"}
    assert changed(plain, key(0)) == {"devices", "order of devices"}
    assert changed(plain, key(xla_option=True)) == {"options"}
    assert changed(key(xla_option=True), key(xla_option=False)) == {"options"}
    assert key(a=1, b=2) == key(b=2, a=1)
    for where, value, names in (
        ("engine.compile.key.__version__", "0.0.1", {"engine"}),
        ("engine.compile.key.version", lambda package: "0.0.1", {"jaxlib"}),
        ("jax.__version__", "0.0.1", {"jax", "compiler"}),
        ("engine.compile.cache.cpu_features", lambda: ["none"], {"compiler"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, value)
            assert changed(plain, key()) == names, where
    monkeypatch.setenv("XLA_FLAGS", "--xla_other_flag=1")
    assert changed(plain, key()) == {"options"}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_of_the_compiler_changes_the_key(name):
    lowered, mesh = jax.jit(jnp.sin).lower(1.0), Mesh(np.array(jax.devices()[:1]), "x")
    plain, before = describe_program(lowered, mesh, {}), jax.config.values[name]
    jax.config.update(name, "O1" if isinstance(before, str) else type(before)(not before))
    try:
        assert changed(plain, describe_program(lowered, mesh, {})) == {"settings"}
    finally:
        jax.config.update(name, before)


def test_large_constants_belong_to_the_program():
    a = np.arange(10_000.0, dtype=np.float32)
    b = np.where(np.arange(10_000) == 5_000, 0, a).astype(np.float32)
    one, other, same = (facts(lambda x, c=c: x + jnp.asarray(c).sum()) for c in (a, b, a.copy()))
    assert one == same != other


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        ({"XLA_FLAGS": "--b=1 --a=2 --xla_dump_to=/x"}, ["--a=2", "--b=1"]),
        ({"XLA_FLAGS": "--a=1 --a=2"}, ["--a=2"]),  # the last one counts
        ({"XLA_FLAGS": "--a=2 --a=1"}, ["--a=1"]),
        ({"XLA_FLAGS": "--a=1", "LIBTPU_INIT_ARGS": "--t=1"}, ["--a=1", "--t=1"]),
    ],
)
def test_flags_of_xla(environment, expected):
    assert flags(environment) == expected


def test_flags_of_xla_in_a_file(tmp_path):
    path = tmp_path / "flags"
    path.write_text("--b=1\n--a=2\n")
    assert flags({"XLA_FLAGS": str(path)}) == ["--a=2", "--b=1"]


def test_shape_of_the_torus_belongs_to_a_program_of_tpus():
    def tpus(width) -> Any:
        return [
            SimpleNamespace(platform="tpu", id=i, process_index=0, coords=(i % width, i // width, 0), core_on_chip=0)
            for i in range(16)
        ]

    assert places(tpus(4)) == places(tpus(4)) != places(tpus(8))
    present = tpus(4)
    for device in present:  # absent ones have no slice, and lists
        device.slice_index, device.coords = 0, list(device.coords)
    assert places(present) == places(tpus(4))


def test_slices_of_gpus_belong_to_no_program_but_their_processes_do():
    def gpus(slices, each=8) -> Any:
        return [
            SimpleNamespace(platform="gpu", id=i, process_index=i // each, slice_index=s) for i, s in enumerate(slices)
        ]

    assert places(gpus([0] * 16)) == places(gpus([0] * 8 + [1] * 8)) != places(gpus([0] * 16, each=4))


def test_paths_of_source_files_are_no_part_of_a_program():
    kernel = r'{backend_config = "{\22body\22: \22TUz=\22, \22debug_locations\22: \22%s\22}"}'
    assert without_locations(kernel % "L2hvbWUvYQ==") == without_locations(kernel % "L2hvbWUvYg==")
    assert without_locations(kernel % "x").replace("TUz=", "") != without_locations(kernel % "x")
