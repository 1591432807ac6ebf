"""Automatic sizes: the search, its limits, runs that choose and resume, and several processes."""

import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine
from engine.auto_size import largest_fitting, memory_limit, row_unit, smallest_fitting
from engine.config import from_text
from engine.config.dev_run import tiny
from engine.config.errors import ConfigError, FieldError
from engine.config.schema import MeshSpec, Sharding, Train
from engine.entry import program
from engine.parallel.memory import compiled_bytes
from engine.parallel.mesh import make_mesh
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


def stored(path):
    return from_text((path / "config.txt").read_text(), "config.txt").train


def need(**settings):
    """Returns the GiB on each device of the step of a config, without the batches that wait."""
    built, _ = program(runs.config(**RUN, **settings))
    return compiled_bytes(built.trace(1).lower().compile()) / 2**30


def test_batch_is_the_largest_that_fits_and_a_resume_keeps_it(tmp_path):
    limit = 2 * need(train__global_batch_size=8, mesh__fsdp=8)
    config = runs.config(**RUN, train__global_batch_size="auto", train__memory_gib=limit, mesh__fsdp=8)
    engine.train(config, workdir=tmp_path)
    size = stored(tmp_path).global_batch_size
    assert f"train.global_batch_size = auto: {size} (" in (tmp_path / "log.txt").read_text()
    assert size % 8 == 0 and 0.6 * limit < need(train__global_batch_size=size, mesh__fsdp=8) <= limit
    changed = runs.config(
        **RUN | dict(train__total="2 steps"), train__global_batch_size="auto", mesh__fsdp=4, mesh__data=2
    )
    assert engine.train(changed, workdir=tmp_path, accept_schedule_change=True).step == 2
    assert stored(tmp_path).global_batch_size == size
    assert (tmp_path / "log.txt").read_text().count("global_batch_size = auto") == 1


def test_microbatches_are_the_fewest_that_fit(tmp_path):
    sizes = dict(train__global_batch_size=1024, train__accumulate="auto")
    config = runs.config(**RUN, **sizes, train__memory_gib=0.99 * need(train__global_batch_size=1024))
    engine.train(config, workdir=tmp_path / "run")
    count = stored(tmp_path / "run").accumulate
    log = (tmp_path / "run/log.txt").read_text()
    assert count > 1 and f"train.accumulate = auto: {count} (" in log
    with pytest.raises(
        ConfigError, match=r"train.accumulate = auto: even with the most microbatches, 128, a step needs"
    ):
        engine.train(runs.config(**RUN, **sizes, train__memory_gib=KIB), workdir=tmp_path / "small")
    with pytest.raises(ConfigError, match=r"auto: with 1, a step needs .* and 2 is not possible: .*BatchNorm"):
        engine.train(runs.config(**RUN, **sizes, train__memory_gib=KIB, task__model="cnn"), workdir=tmp_path / "cnn")


def test_rows_of_a_pipeline_are_a_multiple_of_its_microbatches():
    mesh = make_mesh(MeshSpec(pipeline=2, fsdp=4))
    assert row_unit(mesh, Sharding()) == 4 * 4  # two microbatches per stage
    assert row_unit(mesh, Sharding(microbatches=3)) == 4 * 3
    assert row_unit(make_mesh(MeshSpec(data=2, fsdp=4)), Sharding(microbatches=3)) == 8


def test_limit_is_that_of_the_setting_or_half_of_the_host():
    mesh = make_mesh(MeshSpec(), jax.devices()[:4])
    assert memory_limit(Train(memory_gib=2.5), mesh).bytes == 2.5 * 2**30
    limits = [memory_limit(Train(), make_mesh(MeshSpec(), jax.devices()[:n])) for n in (1, 4)]
    assert limits[0].bytes == 4 * limits[1].bytes
    assert "on each of 4 CPU devices, 50% of" in limits[1].text


def test_two_automatic_sizes_are_refused():
    with pytest.raises(FieldError, match=r"train.accumulate: found auto, but train.global_batch_size is auto too"):
        runs.config(train__global_batch_size="auto", train__accumulate="auto")
    with pytest.raises(FieldError, match=r"train.accumulate: found 'many'. Allowed: a number, or auto"):
        runs.config(train__accumulate="many")


def test_fast_dev_run_replaces_auto_by_small_numbers():
    assert tiny(runs.config(train__global_batch_size="auto", train__accumulate=4)).train.global_batch_size == 8
    assert tiny(runs.config(train__accumulate="auto")).train.accumulate == 1


TWO = """
import os
from engine.cluster import cluster_detection, group, processes
processes.initialize(cluster_detection.detect({}, os.environ).process)
from engine import auto_size
from engine.cluster.host_memory import host_memory
from engine.entry import program
from tests import auto_size_test, runs
auto_size.HOST_SHARE = (200 if group.is_primary() else 100) * 2**10 * 2 / host_memory().bytes
built, _ = program(runs.config(**auto_size_test.RUN, train__global_batch_size="auto", mesh__fsdp=2))
limit = auto_size.memory_limit(runs.config().train, built.mesh).bytes
print(built.batch_size, limit / 2**10)
processes.leave()
"""


@pytest.mark.multiprocess
def test_processes_with_other_memory_agree_on_one_size():
    lines = runs.lines_by_process(TWO, processes=2)
    (size, limit), (other_size, other_limit) = (map(float, lines[i][-1].split()) for i in ("0", "1"))
    assert (limit, other_limit) == pytest.approx((200, 100))
    assert size == other_size
