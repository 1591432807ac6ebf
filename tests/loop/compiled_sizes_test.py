"""What programs need on each device. tests/api/auto_size_test.py chooses sizes by it."""

import jax
import pytest

from engine.api.prepared import prepare
from engine.compile.memory_limit import Limit
from engine.loop.compiled_sizes import CompiledSizes
from engine.parallel.memory import device_bytes
from tests import runs


def opened(**settings):
    """Returns the sizes of a config on two devices, whose shares are bytes, and its program."""
    config = runs.config(**settings)
    found = prepare(config, devices=jax.devices()[:2])
    sources, limit = found.evaluation_sources, Limit(1.0, "1 B")
    sizes = CompiledSizes(found.build_program, config.evaluations, sources, len(found.source), limit)
    return sizes, config.train, found.build_program()[0]


def test_evaluation_needs_its_program_with_the_whole_train_state():
    needs, states = [], []
    for target in ("optax.sgd", "optax.adam"):
        sizes, train, program = opened(optimizer__target=target, train__ema_decay=0.5)
        needs.append(sizes.evaluation_shares(train)["heldout"])
        states.append(sum(map(device_bytes, jax.tree.leaves(program.abstract_state.to_tree()))))
    assert needs[1] - needs[0] == states[1] - states[0] > 0
    assert needs[1] > states[1]


def test_evaluation_that_is_never_due_is_not_compiled():
    never = dict(evaluations__heldout__every="11 steps", evaluations__heldout__at_end=False)
    sizes, train, _ = opened(**never)
    with runs.compilations() as compiled:
        assert sizes.evaluation_shares(train) == {}
    assert compiled == []


def test_share_of_a_step_is_remembered_with_its_text():
    sizes, train, _ = opened()
    need = sizes.share(16, train)
    assert sizes.shares == {16: need} and need > 0
    assert sizes.text(16) in str(sizes) and "1 program compiled: 16: " in str(sizes)
    assert sizes.share_text(float("inf")) == "more than the compiler allows"


def test_error_that_is_not_for_lack_of_memory_is_raised(monkeypatch):
    sizes, train, _ = opened()

    def fail(compiled):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr("engine.loop.compiled_sizes.compiled_bytes", fail)
    text = "RESOURCE_EXHAUSTED: Ran out of memory"  # what the compiler for TPUs says
    assert sizes.share(16, train) == float("inf")
    text = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        sizes.share(16, train)
