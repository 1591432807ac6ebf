import dataclasses

import jax

from engine import layers
from engine.compile.build import check_unrolled
from engine.config.schema import Sharding, Train
from engine.planning import machine as machines
from engine.planning import search, table
from engine.planning.memory import SAFE
from tests import zoo
from tests.planning import tiny


def test_ranking_is_the_fastest_that_fits_and_names_changes_where_nothing_does():
    program, config = tiny.program(), tiny.config()
    ranking = search.rank(program, config, tiny.machine("h100:1x8"))
    assert ranking.fitting and ranking.examined >= len(ranking.fitting)
    best = ranking.fitting[0]
    assert best.step_s <= 1.02 * min(c.step_s for c in ranking.fitting)
    lines = table.table(ranking.model, search.different(ranking.fitting, 4), ranking.model.machine.peak).splitlines()
    assert len(lines) >= 2 and "MFU" in lines[0]
    small = dataclasses.replace(tiny.machine("h100:1x8"), memory=2000)
    refused = search.rank(program, config, small)
    assert not refused.fitting and refused.nearest is not None
    assert any("GiB of memory or more" in text for text in search.changes(refused, "float32"))


def test_steps_of_a_dispatch_are_fewer_where_their_batches_would_not_fit():
    program, config, machine = tiny.program(), tiny.config(), tiny.machine("h100:1x8")
    best = search.rank(program, config, machine).fitting[0]
    assert best.candidate.steps_per_dispatch == 64  # a step is far shorter than a dispatch
    half = round((best.bytes - best.memory["batch"] / 2) / SAFE)
    ranking = search.rank(program, config, dataclasses.replace(machine, memory=half))
    found = {dataclasses.replace(c.candidate, steps_per_dispatch=64): c.candidate for c in ranking.fitting}
    assert 1 < found[best.candidate].steps_per_dispatch < 64
    assert all(ranking.model.fits(cost) for cost in ranking.fitting)


def test_steps_and_microbatches_that_the_engine_refuses_to_unroll_are_not_proposed():
    """With a convolution, a CPU compiles each step and each microbatch separately."""
    train = dataclasses.replace(tiny.config().train, global_batch_size=1024, approximate_accumulation=True)
    config = dataclasses.replace(tiny.config(), train=train)
    program = zoo.program(zoo.Classify("cnn"), batch_size=1024, devices=jax.devices()[:1])
    machine = dataclasses.replace(machines.of_devices(jax.devices()), dispatch=1.0)  # so long that K is the largest
    ranking = search.rank(program, config, machine)
    found = [cost.candidate for cost in ranking.fitting]
    assert {c.accumulate * c.steps_per_dispatch for c in found} >= {64, 128}
    for candidate in found:
        k, accumulate = candidate.steps_per_dispatch, candidate.accumulate
        check_unrolled(program, dataclasses.replace(train, steps_per_dispatch=k, accumulate=accumulate))


@dataclasses.dataclass
class TwoStacks(tiny.Deep):
    """Deep with a second stack, of another depth."""

    def build(self, rngs):
        model = super().build(rngs)
        model["other"] = layers.Stack(tiny.Layer, tiny.DEPTH * 3 // 2, rngs=rngs)
        return model


def test_stages_of_a_pipeline_divide_the_layers_of_every_stack():
    program = zoo.program(TwoStacks(), batch_size=32, devices=jax.devices()[:1])
    assert search.choices_of(program, Train(), Sharding(), {}, tiny.machine("h100:1x8")).layers == 4  # of 8 and 12


def test_nothing_fits_the_default_share_of_a_gpu_names_the_setting_that_would_help():
    program, config, machine = tiny.program(), tiny.config(), tiny.machine("h100:1x8")
    least = search.rank(program, config, dataclasses.replace(machine, memory=1)).nearest
    assert least is not None
    for share, helps in ((0.75, True), (0.95, False)):
        small = dataclasses.replace(machine, memory=round(0.99 * least.bytes / SAFE), share=share)
        found = search.changes(search.rank(program, config, small), "float32")
        assert any(text.startswith("XLA_CLIENT_MEM_FRACTION=0.95") for text in found) == helps
