"""Automatic sizes: the search, the step and the evaluations that must fit, runs that resume, and several processes."""

import math
import re

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine
from engine.api import auto_size
from engine.api.auto_size import largest_fitting, smallest_fitting
from engine.api.prepared import prepare, program
from engine.base.errors import ConfigError, FieldError
from engine.compile.memory_limit import Limit
from engine.config import from_text
from engine.config.dev_run import tiny
from engine.config.schema import MeshSpec
from engine.loop.compiled_sizes import CompiledSizes
from engine.parallel.memory import compiled_bytes
from engine.parallel.mesh import make_mesh
from engine.parallel.schedule import row_unit
from engine.run import goodput
from tests import runs

KIB = 2**-20  # in GiB
RUN = dict(
    data__n=4096,
    train__total="1 step",
    optimizer__target="optax.sgd",
    optimizer__schedule="constant",
    checkpoint__every=None,
    evaluations={},
)
HELDOUT = dict(data=dict(target="tests.zoo.source", n=4096), every="1 step")


@given(
    fixed=st.floats(0, 100),
    each=st.floats(0.01, 10),
    power=st.sampled_from([1.0, 0.8, 1.3]),
    refused=st.integers(2, 3000),  # from this size on, the compiler refuses the program
    limit=st.floats(0, 3000),
    most=st.integers(1, 3000),
)
def test_largest_size_is_found_with_few_programs(fixed, each, power, refused, limit, most):
    def needs(size):
        calls.append(size)
        return fixed + each * size**power if size < refused else math.inf

    calls = []
    found = largest_fitting(needs, limit, most)
    assert len(calls) == len(set(calls)) <= 20
    best = max((n for n in range(1, most + 1) if needs(n) <= limit), default=None)
    assert found == best if found is None or best is None or best < 64 else found <= best <= found * 33 / 32


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=60, unique=True), st.integers(0, 10**6))
def test_smallest_candidate_is_found_with_few_programs(candidates, least):
    calls, candidates = [], sorted(candidates)

    def fits(n):
        calls.append(n)
        return n >= least

    assert smallest_fitting(fits, candidates) == next((n for n in candidates if n >= least), None)
    assert len(calls) == len(set(calls)) <= 2 * math.log2(len(candidates) + 1) + 2


def choose(stored=(), **settings):
    """Returns the section `train` with the sizes that are chosen for one device, and the messages."""
    config, said = runs.config(**RUN | settings), []
    return prepare(config, devices=jax.devices()[:1]).with_sizes(said.append, stored).config.train, said


def need(**settings):
    """Returns the GiB of the step of a config on one device, without the batches that wait."""
    built, _ = program(runs.config(**RUN | settings), jax.devices()[:1])
    return compiled_bytes(built.trace(1).lower().compile()) / 2**30


def needs(**settings):
    """Returns the GiB that the step of a config needs, and those of its evaluation."""
    config = runs.config(**RUN | settings, evaluations__heldout=HELDOUT)
    found, limit = prepare(config, devices=jax.devices()[:1]), Limit(2**30, "1 GiB")
    sizes = CompiledSizes(found.build_program, config.evaluations, found.evaluation_sources, len(found.source), limit)
    return sizes.share(1, config.train), sizes.evaluation_shares(config.train)["heldout"]


def test_batch_is_the_largest_that_fits():
    limit = 4 * need(train__global_batch_size=4)
    train, [said] = choose(train__global_batch_size="auto", train__memory_gib=limit)
    size = train.global_batch_size
    assert said.startswith(f"train.global_batch_size = auto: {size} (")
    assert 0.6 * limit < need(train__global_batch_size=size) <= limit


def test_microbatches_are_the_fewest_that_fit():
    sizes = dict(train__global_batch_size=1024, train__accumulate="auto")
    train, [said] = choose(**sizes, train__memory_gib=0.99 * need(train__global_batch_size=1024))
    assert train.accumulate > 1 and said.startswith(f"train.accumulate = auto: {train.accumulate} (")
    sizes["train__global_batch_size"] = 2
    with pytest.raises(ConfigError, match=r"train.accumulate = auto: even with the most microbatches, 2, a step needs"):
        choose(**sizes, train__memory_gib=KIB)
    with pytest.raises(ConfigError, match=r"auto: with 1, a step needs .* and 2 is not possible: .*BatchNorm"):
        choose(**sizes, train__memory_gib=KIB, task__model="cnn")


def test_evaluation_that_does_not_fit_is_refused_or_limits_the_batch():
    step, evaluation = needs(train__global_batch_size=256, train__accumulate=64)
    assert step < evaluation  # which has no microbatches
    limited = dict(train__memory_gib=(step + evaluation) / 2, evaluations__heldout=HELDOUT, data__n=256)
    train, [said] = choose(train__global_batch_size="auto", train__accumulate=64, **limited)
    assert train.global_batch_size in (128, 192)
    assert f"auto: {train.global_batch_size}, since evaluation heldout needs" in said and " with 256 rows; a sm" in said
    fixed = dict(train__global_batch_size=256, train__accumulate="auto")
    with pytest.raises(
        ConfigError,
        match=r"batch_size = 256 \(that of the training\): with the train state, the evaluation needs",
    ):
        choose(**fixed, **limited)
    with pytest.raises(ConfigError, match=r"evaluations.heldout.batch_size = 256: with the train state, the eval"):
        choose(train__global_batch_size="auto", train__accumulate=64, **limited, evaluations__heldout__batch_size=256)
    never = dict(evaluations__heldout__at_end=False, evaluations__heldout__every="2 steps")
    train, _ = choose(**fixed, **limited, **never)
    assert train.global_batch_size == 256


def test_stored_sizes_are_kept_where_they_fit_and_never_changed_silently(monkeypatch):
    sizes, least = dict(train__global_batch_size=1024, train__accumulate=1), need(train__global_batch_size=1024)
    enough, little = dict(train__memory_gib=1.5 * least), dict(train__memory_gib=0.8 * least)
    batch, count = ["train.global_batch_size"], ["train.accumulate"]
    assert choose(batch, **sizes, **enough) == (runs.config(**RUN | sizes | enough).train, [])
    with pytest.raises(
        ConfigError,
        match=r"train.global_batch_size = auto: the run began with 1024, which a resume cannot change. A step needs "
        r".* Resume with train.global_batch_size=1024 with train.accumulate=auto, .*; devices with more memory",
    ) as error:
        choose(batch, **sizes, **little)
    assert "train.precision" not in str(error.value)  # a resume refuses to change it
    train, [said] = choose(count, **sizes, **little)
    assert train.global_batch_size == 1024 and train.accumulate > 1
    assert said.startswith(f"train.accumulate = auto: {train.accumulate} instead of 1, the value of the run so far")
    with pytest.raises(ConfigError, match=r"train.accumulate = auto: the run began with 1, which a resume cannot"):
        choose(count, **sizes, **little, train__approximate_accumulation=True)
    with pytest.raises(ConfigError, match=r"evaluations.heldout.batch_size = 4096"):
        choose(batch, **sizes, **enough, evaluations__heldout=dict(HELDOUT, batch_size=4096))
    monkeypatch.setattr(auto_size, "memory_limit", lambda *arguments: None)
    assert choose(batch, **sizes)[1] == [
        "train.global_batch_size = auto: the run keeps its value, unchecked, since the memory of a cpu is not known"
    ]
    with pytest.raises(ConfigError, match=r"train.accumulate = auto: the memory of a cpu is not known. Set train.mem"):
        choose(**sizes | dict(train__accumulate="auto"))


STACK = dict(task__target="tests.layers.blocks.Classify", task__layers=2, train__global_batch_size=2048)


@pytest.mark.slow
def test_remat_is_the_cheapest_that_fits(monkeypatch):
    most, least = (need(**STACK, train__remat=remat) for remat in ("none", "full"))
    assert least < most
    enough, little = 2 * most, (least + most) / 2
    train, [said] = choose(**STACK, train__remat="auto", train__memory_gib=enough)
    assert train.remat == "none"
    assert said.startswith("train.remat = auto: none (2 programs compiled: none: ") and ", dots: " in said
    train, [said] = choose(**STACK, train__remat="auto", train__memory_gib=little)
    assert train.remat != "none" and need(**STACK, train__remat=train.remat) <= little
    assert re.search(r"none: [\d.]+ MiB and [\d.]+ (ms|us), dots: ", said)
    with pytest.raises(ConfigError, match=r"= auto: even with the best of none, dots, save:hidden, full, a "):
        choose(**STACK, train__remat="auto", train__memory_gib=KIB)
    assert choose(["train.remat"], **STACK, train__remat="none", train__memory_gib=enough)[1] == []
    monkeypatch.setattr(auto_size, "KEPT_SHARE", 1.0)
    again, [said] = choose(["train.remat"], **STACK, train__remat="none", train__memory_gib=little)
    assert again.remat == train.remat and f" = auto: {train.remat} instead of none, the value of the run so" in said


def test_model_without_layers_that_support_remat_keeps_everything():
    with runs.compilations() as compiled:
        train, said = choose(train__remat="auto", train__memory_gib=1.0)
    assert train.remat == "none" and compiled == []
    assert said == ["train.remat = auto: none (the model has no layer that supports remat)"]


@pytest.mark.slow
def test_run_resumes_with_the_remat_that_it_chose(tmp_path):
    settings = STACK | dict(data__n=32, train__global_batch_size=16, train__memory_gib=1.0)
    engine.train(runs.config(**RUN | settings, train__remat="full"), workdir=tmp_path)
    longer = runs.config(**RUN | settings | dict(train__total="2 steps"), train__remat="auto")
    engine.train(longer, workdir=tmp_path, accept_schedule_change=True)
    assert stored(tmp_path).remat == "full"  # a new run would choose none


def stored(path):
    return from_text((path / "config.txt").read_text(), "config.txt").train


def test_run_resumes_with_the_size_that_it_chose(tmp_path):
    settings = dict(data__n=16, train__global_batch_size="auto", train__memory_gib=1.0)
    compiled: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and kwargs["fun_name"] == "jit(steps)":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        engine.train(runs.config(**RUN | settings), workdir=tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert stored(tmp_path).global_batch_size == 16  # an epoch
    assert "train.global_batch_size = auto: 16 (" in (tmp_path / "log.txt").read_text()
    ledger = [entry for entry in goodput.read(tmp_path / "goodput.jsonl") if entry["kind"] == "compile"]
    assert sum(compiled) <= sum(entry["seconds"] for entry in ledger)
    assert len(compiled) == 3  # two sizes, and the program of the run
    longer = runs.config(**RUN | settings | dict(train__total="2 steps"))
    assert engine.train(longer, workdir=tmp_path, accept_schedule_change=True).step == 2
    assert stored(tmp_path).global_batch_size == 16
    assert (tmp_path / "log.txt").read_text().count("global_batch_size = auto") == 1
    smaller = runs.config(**RUN | settings | dict(train__total="3 steps", train__memory_gib=KIB))
    with pytest.raises(ConfigError, match=r"the run began with 16, which a resume cannot change"):
        engine.train(smaller, workdir=tmp_path, accept_schedule_change=True)


def test_rows_of_a_pipeline_are_a_multiple_of_its_microbatches():
    mesh = make_mesh(MeshSpec(pipeline=2, fsdp=4))
    assert row_unit(mesh, None) == 4 * 4  # two microbatches per stage
    assert row_unit(mesh, 3) == 4 * 3
    assert row_unit(make_mesh(MeshSpec(data=2, fsdp=4)), 3) == 8


def test_two_automatic_sizes_are_refused():
    with pytest.raises(FieldError, match=r"train.accumulate: found auto, but train.global_batch_size is auto too"):
        runs.config(train__global_batch_size="auto", train__accumulate="auto")
    with pytest.raises(FieldError, match=r"train.remat: found auto, but train.accumulate is auto too. .* such as full"):
        runs.config(train__accumulate="auto", train__remat="auto")
    with pytest.raises(FieldError, match=r"train.accumulate: found 'many'. Allowed: a number, or auto"):
        runs.config(train__accumulate="many")


def test_fast_dev_run_replaces_auto_by_small_numbers():
    assert tiny(runs.config(train__global_batch_size="auto", train__accumulate=4)).train.global_batch_size == 8
    assert tiny(runs.config(train__accumulate="auto")).train.accumulate == 1
    assert tiny(runs.config(train__remat="auto")).train.remat == "none"
    config = runs.config(train__global_batch_size="auto", train__accumulate=2)
    assert [tiny(config, lambda config, n=n: n).train.global_batch_size for n in (1, 3, 8)] == [8, 12, 16]


def test_fast_dev_run_with_an_automatic_batch_divides_over_the_mesh():
    config = runs.config(**RUN, train__global_batch_size="auto", train__accumulate=3, mesh__data=8)
    assert engine.train(config, fast_dev_run=True).step == 2


TWO = """
import os
from engine.cluster import cluster_detection, group, processes
processes.initialize(cluster_detection.detect({}, os.environ).process)
from engine.base.host import host_memory
from engine.base.errors import ConfigError
from engine.api.prepared import program
from engine.compile import memory_limit, step_time
from engine.compile.memory_limit import Limit
from engine.parallel.mesh import make_mesh
from tests import runs
from tests.api import auto_size_test
memory_limit.HOST_SHARE = (200 if group.is_primary() else 2) * 2**10 * 2 / host_memory().bytes
config = runs.config(**auto_size_test.RUN, train__global_batch_size="auto", mesh__fsdp=2)
try:
    program(config)
except ConfigError as error:
    print(error)
mesh = make_mesh(config.mesh)
print(memory_limit.memory_limit(None, mesh).bytes / 2**10)
memory_limit.machine_id = memory_limit.network_id = lambda: str(group.index())  # as on two hosts
print(memory_limit.memory_limit(None, mesh).bytes / 2**10)
step_time.step_seconds = lambda *arguments: next(seconds)  # as if the estimates of the processes differed
seconds = iter([2.0, 1.0, 3.0, 4.0] if group.is_primary() else [1.0, 2.0, 3.0, 4.0])
stack = auto_size_test.STACK | dict(train__remat="auto", train__memory_gib=1.0, mesh__fsdp=2)
print(program(runs.config(**auto_size_test.RUN | stack))[0].spec.layout.remat)
processes.leave()
"""


@pytest.mark.multiprocess
def test_processes_with_other_memory_agree():
    lines = runs.lines_by_process(TWO, processes=2)
    for i, limit in (("0", 200), ("1", 2)):
        error, shared, alone, remat = lines[i][-4:]
        assert "even with the smallest batch, 2, a step needs" in error  # 2 KiB of process 1 are too little
        assert (float(shared), float(alone)) == pytest.approx((limit, 2 * limit))
        assert remat == "dots"  # that of the primary
