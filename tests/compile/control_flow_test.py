"""The choice of loops and branches of a step, on CPUs and accelerators."""

import pytest

from engine.compile.control_flow import step_control_flow


@pytest.mark.parametrize("has_convolution", [True, False])
def test_cpu_step_unrolls_with_convolutions_and_branches_without(has_convolution):
    assert step_control_flow("cpu", has_convolution) == (has_convolution, not has_convolution)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerator_step_scans_and_selects(platform):
    assert not any(flag for has_convolution in (True, False) for flag in step_control_flow(platform, has_convolution))
