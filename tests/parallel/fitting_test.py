"""Meshes in place of one that does not fit the devices."""

import jax
from hypothesis import given
from hypothesis import strategies as st

from engine.config.schema import DcnMeshSpec, MeshSpec
from engine.parallel.fitting import fitting_meshes, spec_text
from engine.parallel.mesh import AXES, resolve_axes
from tests.properties import examples

SIZES = st.sampled_from([None, 1, 2, 3, 4, 6, 8])


@examples(100)
@given(st.fixed_dictionaries(dict.fromkeys(AXES, SIZES)), st.sampled_from([None, *AXES]), st.integers(1, 8))
def test_every_mesh_fits_its_devices_and_each_axis_divides_that_of_the_run(sizes, free, count):
    given_ = {**sizes, **({free: -1} if free else {})}
    spec = MeshSpec(**given_, dcn=DcnMeshSpec(data=2), cpu_devices=3)
    (first, devices), *others = fitting_meshes(spec, jax.devices()[:count])
    assert (first, len(devices)) == (spec, count)
    for mesh, devices in others:
        found = resolve_axes(mesh, len(devices)).sizes
        assert all((given_[axis] or 1) % size == 0 for axis, size in found.items() if axis not in ("data", free))
        assert mesh.cpu_devices == 3
    numbers = [len(devices) for _, devices in others]
    assert numbers[0] == count and numbers[-1] == 1 and numbers == sorted(numbers, reverse=True)


def test_axes_of_the_model_are_kept_as_far_as_they_divide_the_devices():
    def nearest(count, **axes):
        spec = MeshSpec(**axes)
        return [spec_text(mesh) for mesh, devices in fitting_meshes(spec, jax.devices()[:count])][1]

    assert nearest(4, data=4, tensor=2) == "data=2 x tensor=2"
    assert nearest(4, fsdp=8) == "fsdp=4"
    assert nearest(6, fsdp=-1, tensor=4) == "fsdp=3 x tensor=2"
    assert nearest(1, pipeline=2, expert=4) == "data=1"
    assert nearest(4, preset="tensor-8") == "tensor=4"
    assert spec_text(MeshSpec(preset="fsdp")) == "preset fsdp"
