"""Costs of a step of a small model, read from HLO and from what XLA executes, and the rows of the benchmark."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from benchmarks.aot import driving, small
from benchmarks.aot.modelled_time import modelled_time
from engine.compile.hlo_text import HloText
from engine.config import hardware
from engine.config.schema import Target
from engine.config.target import build

THUNKS = """001: kCopy         [source       | next=004 (3)] kCopy
002: kWhile        [prev=003 (1) | sink        ]
condition:
    003: kCustomKernel [source | sink] loop_compare_fusion
  body:
    000: kCommandBuffer [source       | next=039 (1)]
        006: kCustomKernel [source       | next=007 (1)] gemm_fusion_dot
        007: kCustomKernel [prev=006 (1) | next=008 (1)] loop_reduce_fusion_7
    008: kAsyncStart    [prev=000 (1) | sink        ] stream=computation_stream[0], async_id=39
        009: kCopy [source | sink] kCopy
    010: kAsyncDone     [source       | sink        ] async_id=39
    011: kCustomKernel  [source       | sink        ] loop_add_fusion
"""
CONVOLUTION = 'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv'
PRODUCTS = f"""HloModule test

ENTRY %main (a: bf16[2,30,14], b: bf16[2,14,20]) -> bf16[2,30,20] {{
  %a = bf16[2,30,14]{{2,1,0}} parameter(0)
  %b = bf16[2,14,20]{{2,1,0}} parameter(1)
  %x = bf16[4,8,8,16]{{3,2,1,0}} parameter(2)
  %w = bf16[32,3,3,16]{{3,2,1,0}} parameter(3)
  %c = (bf16[4,8,8,32]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %w), {CONVOLUTION}Forward"
  %g = bf16[4,8,8,32]{{3,2,1,0}} get-tuple-element(%c), index=0
  %f = (bf16[32,3,3,16]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %g), {CONVOLUTION}BackwardFilter"
  %i = (bf16[4,8,8,16]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%g, %w), {CONVOLUTION}BackwardInput"
  ROOT %d = bf16[2,30,20]{{2,1,0}} dot(%a, %b), lhs_batch_dims={{0}}, lhs_contracting_dims={{2}}
}}
"""
STRIDED = "window={size=3x3 pad=2_1x2_1 lhs_dilate=2x2 rhs_reversal=1x1}, dim_labels=b01f_01oi->b01f"
BATCHED = "window={size=4x6 stride=3x5 lhs_dilate=4x6}, dim_labels=01bf_01io->01bf"
ON_A_TPU = f"""HloModule test

ENTRY %main (a: bf16[4,6,30,14], b: bf16[4,6,14,20]) -> bf16[4,6,30,20] {{
  %a = bf16[4,6,30,14]{{3,2,1,0}} parameter(0)
  %b = bf16[4,6,14,20]{{3,2,1,0}} parameter(1)
  %g = bf16[2,8,8,16]{{3,2,1,0}} parameter(2)
  %w = bf16[3,3,32,16]{{3,2,1,0}} parameter(3)
  %i = bf16[2,16,16,32]{{3,2,1,0}} convolution(%g, %w), {STRIDED}
  ROOT %d = bf16[4,6,30,20]{{3,2,1,0}} convolution(%a, %b), {BATCHED}
}}
"""


def test_a_graph_is_started_once_and_a_loop_in_each_step():
    assert small.host_starts(THUNKS) == 1 + 4
    assert small.host_starts(THUNKS, 8) == 1 / 8 + 4


def test_products_and_convolutions_have_their_sizes():
    found = [sizes for _, sizes in small.products(HloText.parse(PRODUCTS))]
    assert found == [(9, 256, 16, 32)] * 3 + [(2, 30, 14, 20)]
    assert small.rounded((2, 30, 14, 20), 8, 128) == 2 * 32 * 128 * 128
    strided, batched = (sizes for _, sizes in small.products(HloText.parse(ON_A_TPU)))
    assert batched == (24, 30, 14, 20)
    # A number of the input meets 9 numbers of the kernel, except for the last ones, whose output is cut off.
    assert strided == (9, math.ceil(2 * (8 * 3 - 1) ** 2 / 9), 16, 32)


def test_costs_are_those_of_one_step(monkeypatch):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    monkeypatch.setattr(small, "ROUNDED", {"cpu": (8, 128)})

    def steps(x):
        return jax.lax.fori_loop(0, 4, lambda _, x: jnp.tanh(x @ x), x)

    compiled = jax.jit(steps).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile()
    costs = small.step_costs(compiled, mesh, steps=4)
    assert costs.flops == 2 * 64**3 and costs.padding == pytest.approx(0.75)
    assert 1 <= costs.launches < 10 and costs.bytes > 3 * 64 * 64 * 4


def test_rows_are_listed_and_unknown_rows_are_refused(capsys):
    assert driving.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [f"{t}-{name}" for t in driving.TARGETS for name in driving.WORKLOADS]
    assert driving.main(["--rows=h100-lidar"]) == 2
    assert "h100-lidar is unknown" in capsys.readouterr().err


TIMED = """HloModule test

%fused (p: f32[1000,1000]) -> f32[1000,1000] {
  %p = f32[1000,1000]{1,0} parameter(0)
  ROOT %inner = f32[1000,1000]{1,0} dot(%p, %p), lhs_contracting_dims={1}
}

ENTRY %main (a: f32[1000,1000]) -> f32[1000,1000] {
  %a = f32[1000,1000]{1,0} parameter(0)
  %d = f32[1000,1000]{1,0} fusion(%a), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"3000"}
  ROOT %t = f32[1000,1000]{1,0} tanh(%d), backend_config={"estimated_cycles":"6000"}
}
"""


def test_time_is_divided_between_products_and_other_instructions():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    v5e, h100 = (hardware.DEVICES[kind] for kind in ("TPU v5 lite", "NVIDIA H100 80GB HBM3"))
    h100 = dataclasses.replace(h100, bf16=1e12, hbm_bandwidth=1e9)
    time = modelled_time(TIMED, mesh, v5e, steps=2)
    assert (time.products, time.others, time.waiting) == (1e-6, 2e-6, 0) and time.outside == pytest.approx(2 / 3)
    time = modelled_time(TIMED, mesh, h100)
    assert (time.products, time.others) == (pytest.approx(8e-3), pytest.approx(8e-3))  # both are bound by memory
    fast = dataclasses.replace(h100, hbm_bandwidth=1e15)
    assert modelled_time(TIMED, mesh, fast).products == pytest.approx(2e-3)


def test_data_of_the_workloads_need_no_files():
    for name, workload in driving.WORKLOADS.items():
        if arguments := dict(workload.settings.get("data", {})):
            source = build(Target(target=arguments.pop("target"), arguments=arguments), name)
            assert len(source) > 1000 and jax.tree.leaves(source[0])
