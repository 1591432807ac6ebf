import dataclasses

import pytest

from engine.planning import machine as machines
from engine.planning.calibration import with_rates
from tests.planning import tiny


@dataclasses.dataclass(frozen=True)
class Fake:
    """What JAX states of a device of several hosts."""

    platform: str
    device_kind: str
    process_index: int
    slice_index: int = 0

    def memory_stats(self):
        """Returns nothing, as a CPU does."""


@pytest.mark.parametrize(
    ("platform", "kind", "slices", "size"),
    [
        ("tpu", "TPU v5p", 2, 8),  # 2 slices of 2 hosts each
        ("gpu", "NVIDIA H100 80GB HBM3", 2, 8),  # hosts of 2 processes each
        ("cpu", "cpu", 4, 4),
    ],
)
def test_devices_that_are_present_are_divided_by_their_slices(platform, kind, slices, size):
    devices = [Fake(platform, kind, i // 4, i // 8) for i in range(16)]
    machine = machines.of_devices(devices)  # pyright: ignore[reportArgumentType]
    assert (machine.slices, machine.slice_size) == (slices, size)


def test_gpu_axes_cross_hosts_from_the_outermost_and_slices_by_dcn():
    machine = tiny.machine("h100:4x8")
    mesh = tiny.candidate(data=4, fsdp=4, tensor=2)
    assert machine.split(mesh.axes, mesh.dcn, "tensor") == (2, 1)
    assert machine.split(mesh.axes, mesh.dcn, "fsdp") == (4, 1)
    assert machine.split(mesh.axes, mesh.dcn, "data") == (1, 4)
    whole = tiny.candidate(fsdp=32)
    assert machine.split(whole.axes, whole.dcn, "fsdp") == (8, 4)


def test_axis_over_a_whole_dimension_of_a_torus_is_a_ring_of_two_links():
    """v5p:4x4x8: an axis of 8 takes the last dimension, whose two links are a third of all."""
    v5p = tiny.machine("v5p:4x4x8")
    within = tiny.candidate(fsdp=16, tensor=8).axes
    assert v5p.axis_link(within, "tensor") == pytest.approx(v5p.link / 3)
    assert v5p.axis_link(within, "fsdp") == pytest.approx(v5p.link * 2 / 3)


def test_memory_of_an_absent_gpu_is_what_jax_would_allocate(monkeypatch):
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    assert tiny.machine("h100:1x8").memory == 0.75 * 80e9
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
    assert tiny.machine("h100:1x8").memory == 0.9 * 80e9
    assert tiny.machine("v5p:2x2x1").memory == 95e9


def test_products_in_eight_bits_keep_their_ratio_to_bfloat16_with_measured_rates():
    h100, a100 = tiny.machine("h100:1x8"), tiny.machine("a100:1x8")
    assert h100.peak("float8") == h100.peak("int8") == pytest.approx(2 * h100.bf16, rel=1e-3)
    assert a100.peak("int8") == 2 * a100.bf16 and a100.peak("float8") == a100.bf16
    rates: dict[str, float] = dict.fromkeys(["bf16", "f32", "bandwidth", "link", "latency", "dispatch"], 1e12)
    assert with_rates(h100, rates, "measured").peak("float8") == pytest.approx(2e12, rel=1e-3)


def test_share_of_a_narrow_product_lies_between_the_measured_ones():
    plain = tiny.machine("h100:1x8")
    assert plain.product_share(1) == plain.product_share(None) == 1
    machine = dataclasses.replace(plain, shares={"64": 0.5, "16": 0.25, "convolution": 0.4})
    found = [machine.product_share(size) for size in (None, 1, 16, 32, 64, 384, 4096)]
    assert found == pytest.approx([0.4, 0.25, 0.25, 0.375, 0.5, 1, 1])
