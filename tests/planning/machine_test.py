import pytest

from tests.planning import tiny


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
