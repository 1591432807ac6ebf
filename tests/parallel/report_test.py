"""The report: the mesh, each parameter once, the bytes on a device."""

from engine.config.schema import MeshSpec
from engine.parallel.report import describe, size_text
from tests import zoo


def test_repeated_layers_share_a_line_and_bytes_are_those_of_one_device():
    program = zoo.program(zoo.Classify("decoder"), mesh=MeshSpec(fsdp=4, tensor=2), ema_decay=0.9)
    text = describe(program.mesh, program.abstract_state, program.spec.model.names, 100)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "mesh: data=1 fsdp=4 tensor=2 (8 x cpu)"
    assert "up/kernel f32[32,64] (embed, mlp) P('fsdp', 'tensor') 1.0 KiB/device" in lines
    assert any(line.startswith("opt_state: ") for line in lines)
    assert lines[-1].startswith("state: ")
    program = zoo.program(zoo.Classify())
    lines = describe(program.mesh, program.abstract_state, {}, 1).splitlines()
    assert any(" ".join(line.split()).startswith("hidden/*/bias x2 f32[32]") for line in lines)


def test_sizes_read_well():
    assert [size_text(n) for n in (12, 1536, 3 * 2**20, 5 * 2**30)] == ["12 B", "1.5 KiB", "3.0 MiB", "5.0 GiB"]
