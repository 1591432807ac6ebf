import pytest

from engine.base.errors import ConfigError
from engine.config.hardware import (
    AXES,
    DEVICES,
    EIGHT_BITS,
    MESH_PRESETS,
    check_precision,
    find,
    mesh_preset,
    peak_flops,
)


def test_find_looks_up_the_device_kind_of_jax():
    h100 = find("NVIDIA H100 80GB HBM3")
    assert h100 is not None and h100.name == "H100 SXM"
    assert h100.peak("bfloat16") == 989.4e12 and h100.peak("float32") == 494.7e12
    assert find("TPU v5 lite") is find("TPU v5e")
    assert find("cpu") is None


@pytest.mark.parametrize("kind", DEVICES)
def test_hardware_numbers_are_in_plausible_ranges(kind):
    """Catches wrong units of FLOP/s, bytes and bytes/s: reading the memory once takes between 10 and 100 ms."""
    device = DEVICES[kind]
    assert 5e13 < device.bf16 < 3e15
    assert device.peak("float32") <= device.peak("bfloat16")
    assert 0.01 < device.hbm_bytes / device.hbm_bandwidth < 0.1


@pytest.mark.parametrize("kind", DEVICES)
def test_default_mesh_of_each_device_is_a_preset(kind):
    assert DEVICES[kind].mesh in MESH_PRESETS


def test_mesh_presets_have_one_free_axis_per_network():
    assert mesh_preset("fsdp") == {"data": 1, "fsdp": -1}
    assert mesh_preset("slices") == {"data": 1, "fsdp": -1, "dcn.data": -1}
    for axes in MESH_PRESETS.values():
        assert {axis.removeprefix("dcn.") for axis in axes} <= set(AXES)
        within = [size for axis, size in axes.items() if not axis.startswith("dcn.")]
        between = [size for axis, size in axes.items() if axis.startswith("dcn.")]
        assert within.count(-1) == 1 and between.count(-1) <= 1
    with pytest.raises(ConfigError, match=r"mesh.preset: found 'fdsp'. Allowed: auto, .* Did you mean fsdp\?"):
        mesh_preset("fdsp")


def test_eight_bits_are_about_twice_as_fast_as_bfloat16_where_a_device_has_them():
    names = {device.name: device for device in DEVICES.values()}
    assert EIGHT_BITS.keys() <= names.keys()
    for name, peaks in EIGHT_BITS.items():
        assert all(peak == pytest.approx(2 * names[name].bf16, rel=0.01) for peak in peaks.values()), name
    assert peak_flops("TPU v6 lite", "int8", 4) == 4 * 1836e12
    assert peak_flops("TPU v6 lite", "float8", 4) == 4 * 918e12  # products of values that are converted to bfloat16


@pytest.mark.parametrize(
    ("kind", "precision", "advice"),
    [
        ("NVIDIA A100-SXM4-80GB", "float8", "A100 80GB SXM has no .* Use int8 or bfloat16."),
        ("TPU v5 lite", "float8", "TPU v5e has no .* Use int8 or bfloat16."),
        ("TPU7x", "int8", "TPU v7 chiplet has no .* Use float8 or bfloat16."),
        ("TPU v4", "int8", "TPU v4 has no .* Use bfloat16."),
    ],
)
def test_a_precision_that_brings_nothing_is_refused(kind, precision, advice):
    with pytest.raises(ConfigError, match=f"^train.precision = {precision}: {advice}$"):
        check_precision(kind, precision)


def test_a_precision_that_a_device_has_is_accepted():
    for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA L4", "cpu", "unknown"):
        check_precision(kind, "float8")
        check_precision(kind, "int8")
    for kind in DEVICES:
        check_precision(kind, "bfloat16")
        check_precision(kind, "float32")
