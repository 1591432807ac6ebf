import copy
import dataclasses

import jax
import numpy as np
import pytest

from engine.planning import table
from engine.planning.memory import Cost
from tests.planning import tiny


def test_candidate_sets_only_what_differs_from_the_config():
    text = table.command(tiny.candidate(fsdp=8, remat="full"), {"train.remat": "none", "train.accumulate": 1})
    assert "--config.mesh.fsdp=8" in text and "--config.train.remat=full" in text
    assert "accumulate" not in text


def test_mesh_that_is_predicted_badly_on_cpus_has_a_warning():
    cpu = dataclasses.replace(tiny.machine("h100:1x8"), platform="cpu")
    split, copies = (tiny.model().cost(tiny.candidate(**axes)) for axes in ({"data": 4, "tensor": 2}, {"data": 8}))
    assert any("use --compile" in text for text in table.warnings(split, cpu))
    compiled = dataclasses.replace(split, compiled=True)
    assert not any("use --compile" in text for cost in (copies, compiled) for text in table.warnings(cost, cpu))


def test_command_resets_the_axes_of_the_config_that_the_candidate_does_not_split():
    given = {"mesh.preset": "tensor-8", "mesh.tensor": 2, "mesh.context": 1, "mesh.expert": None, "mesh.dcn.data": 2}
    flags = table.command(tiny.candidate(fsdp=8), given).split()
    mesh = {flag for flag in flags if flag.startswith("--config.mesh.")}
    settings = ("preset=auto", "data=1", "fsdp=8", "tensor=1", "dcn.data=1")
    assert mesh == {f"--config.mesh.{setting}" for setting in settings}


def test_candidate_that_needs_more_than_jax_allocates_by_default_has_a_warning(monkeypatch):
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")

    def warns(target, share):
        machine = tiny.machine(target)
        found = table.warnings(Cost(tiny.candidate(), {"activations": share * machine.memory}), machine)
        return any("XLA_CLIENT_MEM_FRACTION" in text for text in found)

    assert warns("h100:1x8", 0.8) and not warns("h100:1x8", 0.7) and not warns("v5e:2x2", 0.8)


def test_model_of_tokens_has_a_column_of_tokens_per_second():
    model = copy.copy(tiny.model())
    cost = model.cost(tiny.candidate(data=8))
    assert "tok/s" not in table.table(model, [cost], model.machine.peak).splitlines()[0]
    model.traces = copy.copy(model.traces)
    rows = {"tokens": jax.ShapeDtypeStruct((tiny.ROWS, 512), np.int32)}
    model.traces.program = copy.copy(tiny.program())
    model.traces.program.abstract_batch = dataclasses.replace(tiny.program().abstract_batch, examples=rows)
    header, row = table.table(model, [cost], model.machine.peak).splitlines()
    examples, tokens = (row[header.index(name) :].split()[0].replace(",", "") for name in ("ex/s", "tok/s"))
    assert int(tokens) == pytest.approx(512 * int(examples), rel=0.001)


def test_mfu_is_a_share_of_the_peak_in_the_precision_of_the_candidate():
    model = tiny.model()
    cost = model.cost(tiny.candidate(data=8))
    half = dataclasses.replace(cost, candidate=tiny.candidate(data=8, precision="bfloat16"))
    peaks = {"float32": 1e7, "bfloat16": 2e7}
    header, *rows = table.table(model, [cost, half], peaks.__getitem__).splitlines()
    first, second = (float(row[header.index("MFU") :].split("%")[0]) for row in rows)
    assert first == pytest.approx(2 * second, rel=0.02) and first > 0


def test_candidate_of_which_only_the_formula_is_known_did_not_lose_by_its_time():
    model = tiny.model()
    winner, other = (model.cost(tiny.candidate(**axes)) for axes in ({"fsdp": 8}, {"data": 8}))
    other.seconds = {name: s / 2 for name, s in winner.seconds.items()}
    assert table.why(winner, other, model) == "as fast, and less simple"
    assert "by formula alone" in table.why(dataclasses.replace(winner, compiled=True), other, model)
