"""What `explain` says of a step. tests/compile/report_test.py has the other texts."""

from engine.api import explain
from engine.config.schema import MeshSpec
from engine.parallel import layout
from tests import zoo


class NeedsMesh(zoo.Classify):
    """A Task whose loss works on eight devices only."""

    def loss(self, model, batch, rng):
        mesh = layout.current().mesh
        if mesh is None or mesh.size != 8:
            raise ValueError("the loss needs 8 devices")
        return super().loss(model, batch, rng)


def test_explain_leaves_out_the_flops_of_a_loss_that_cannot_be_traced_for_one_device():
    program = zoo.program(NeedsMesh(), mesh=MeshSpec(data=8))
    program.trace(1)
    assert explain._flops_line(program, at_least=False).startswith(
        "FLOPs of a step are left out: tracing the loss for one device failed: ValueError: the loss needs 8 devices ("
    )
