"""Options of the compiler: the table, what a config changes, and errors of XLA."""

import dataclasses

import jax
import pytest

from engine.base.errors import ConfigError
from engine.compile.options import OPTIONS, PREFIXES, check_options, compiler_options, step_control_flow, step_options
from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh
from tests import zoo


def test_each_option_has_a_reason():
    assert all(option.reason.endswith(".") for table in OPTIONS.values() for option in table.values())


def test_config_adds_replaces_and_removes_options():
    name, option = next(iter(OPTIONS["tpu"].items()))
    assert compiler_options("tpu", {})[name] == option.value
    assert name not in compiler_options("tpu", {name: None})
    assert compiler_options("tpu", {name: "other", "xla_more": 1}) == {
        **{name: option.value for name, option in OPTIONS["tpu"].items()},
        name: "other",
        "xla_more": 1,
    }


def test_options_of_other_platforms_are_ignored():
    chosen = {f"{prefix}any": 1 for prefixes in PREFIXES.values() for prefix in prefixes}
    assert compiler_options("cpu", chosen) == {"xla_cpu_any": 1}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"xla_cpu_no_such": True}, "No such compile option: 'xla_cpu_no_such'"),
        ({"xla_cpu_enable_fast_math": "maybe"}, "xla_cpu_enable_fast_math, 'maybe' is not a valid bool value"),
    ],
)
def test_wrong_option_is_a_config_error_with_the_words_of_xla(options, problem):
    with pytest.raises(ConfigError, match=rf"compiler.options: XLA for cpu reports: .*{problem}\. Correct or remove"):
        check_options(make_mesh(MeshSpec()), options)


def test_options_of_the_config_reach_the_compiler():
    built = zoo.program(zoo.Classify())
    built.spec = dataclasses.replace(built.spec, compiler_options={"xla_cpu_no_such": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_no_such"):
        built.steps(1)


@pytest.mark.parametrize("has_convolution", [True, False])
def test_cpu_step_unrolls_with_convolutions_and_branches_without(has_convolution):
    assert step_control_flow("cpu", has_convolution) == (has_convolution, not has_convolution)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerator_step_scans_and_selects(platform):
    assert not any(flag for has_convolution in (True, False) for flag in step_control_flow(platform, has_convolution))


def test_a_step_of_packed_arrays_keeps_summed_gradients_apart_unless_the_config_says_otherwise():
    name = "xla_disable_hlo_passes"
    assert step_options({}, False) is None
    assert step_options({"xla_gpu_autotune_level": 1}, True) == {
        name: "all-reduce-contiguous",
        "xla_gpu_autotune_level": 1,
    }
    assert step_options({name: "cse"}, True) == {name: "cse"}
