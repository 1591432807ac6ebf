"""Builds programs from configs; settings that do not fit raise an error before anything is compiled."""

from typing import Any

import jax
import pytest

from engine import Task
from engine.base.errors import ConfigError, ConvoyError, TaskError
from engine.compile.build import build_program, build_task, check_unrolled, open_compiler
from engine.compile.compiler import ProgramCompiler
from engine.compile.program_store import StoredPrograms
from engine.config.schema import Target
from engine.parallel.mesh import make_mesh
from tests import runs, zoo


def build(devices: int = 1, model: str = "mlp", **settings):
    config = runs.config(**settings)
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    return build_program(zoo.Classify(model), mesh, zoo.source(), config)


def test_build_converts_durations_to_steps_without_compiling():
    program, total = build(train__total="3 epochs")
    assert total == 12  # 64 examples in batches of 16
    assert program.compile_s == 0
    assert jax.tree.map(lambda x: x.shape[0], program.abstract_batch.examples) == {"x": 16, "y": 16, "valid": 16}


class CountsBuilds(zoo.Classify):
    """Classifier that counts how often its model is built."""

    def __init__(self):
        super().__init__()
        self.builds = 0

    def build(self, rngs):
        self.builds += 1
        return super().build(rngs)


def test_build_traces_the_model_once_and_compiles_nothing():
    config, task = runs.config(optimizer__warmup="1 step", optimizer__target="optax.adamw"), CountsBuilds()
    jax.clear_caches()  # a program of a number that another test has compiled is no compilation
    with runs.compilations() as compiled:
        build_program(task, make_mesh(config.mesh, jax.devices()[:1]), zoo.source(), config)
    assert (task.builds, len(compiled)) == (1, 0)


def test_config_settings_reach_the_step():
    program, _ = build(train__ema_decay=0.9, train__accumulate=2, resilience__spike=3.0)
    assert (program.spec.ema_decay, program.spec.accumulate, program.spec.spike) == (0.9, 2, 3.0)
    assert program.abstract_state.ema is not None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mesh__data": 3, "devices": 3}, "16"),
        ({"optimizer__trainable": "nothing"}, "nothing"),
        ({"mesh__expert": 2, "devices": 2}, "no experts"),
        ({"train__precision": "float8"}, "^train.precision = float8: the model of Classify has no product that"),
        ({"train__total": "1e14 epochs"}, "^train.total: 400000000000000 steps, allowed are at most 2147483647"),
        ({"optimizer__warmup": "3e9 steps"}, "^optimizer.warmup: 3000000000 steps, allowed are at most 2147483647"),
        (
            {"optimizer__target": "builtins.dict"},
            "^optimizer.target: builtins.dict returned a dict, which is not",
        ),
    ],
)
def test_invalid_settings_raise_convoy_error(settings, words):
    with pytest.raises(ConvoyError, match=words):
        build(**settings)


def test_wrong_compiler_option_is_refused_before_anything_is_compiled():
    options = {"xla_cpu_no_such": True, "xla_tpu_other": 1}
    with pytest.raises(ConfigError, match=r"^compiler.options: XLA for cpu reports: No such compile option: 'xla_cpu"):
        build(compiler__options=options)
    program, _ = build(compiler__options={"xla_backend_optimization_level": 1, "xla_tpu_other": 1})
    assert program.spec.compiler_options == {"xla_backend_optimization_level": 1}


def test_steps_with_convolutions_beyond_the_unrolled_limit_are_refused():
    convolutional, dense = build(model="cnn")[0], build()[0]
    fits = runs.config(train__accumulate=8, train__steps_per_dispatch=16).train
    check_unrolled(convolutional, fits)
    many = runs.config(train__accumulate=8, train__steps_per_dispatch=17).train
    check_unrolled(dense, many)
    with pytest.raises(ConfigError, match=r"^train.steps_per_dispatch: found .*= 136\..* at most 128\."):
        check_unrolled(convolutional, many)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (
            "builtins.dict",
            r"^task.target: builtins.dict returned a dict, which is not a Task. Name a subclass",
        ),
        ("builtins.print", r"^task.target: builtins.print returned None, which is not a Task."),
    ],
)
def test_task_target_must_give_a_task(target, text):
    with pytest.raises(ConfigError, match=text):
        build_task(Target(target=target))


NoRng = type("NoRng", (Task,), {"loss": lambda self, model, batch: None})


def test_task_whose_methods_take_other_arguments_is_refused():
    with pytest.raises(TaskError, match=r"^NoRng.loss: found loss\(model, batch\), but the engine calls loss\(mod"):
        build_task(Target(target=f"{__name__}.NoRng"))


def test_programs_are_loaded_only_from_a_folder_that_the_config_names(tmp_path):
    assert type(open_compiler(None, "", print)) is ProgramCompiler
    assert isinstance(open_compiler(str(tmp_path), "", print), StoredPrograms)
    with pytest.raises(ConfigError, match="absent is not a folder"):
        open_compiler(str(tmp_path / "absent"), "", print)


def test_frozen_batch_statistics_allow_microbatches_and_moving_ones_are_reported():
    frozen: dict[str, Any] = dict(optimizer__trainable="^head/", optimizer__frozen_statistics="^norm/")
    program, _ = build(model="cnn", train__accumulate=2, **frozen)
    assert program.spec.model.frozen_norms == ("norm",)
    assert program.warnings == []
    moving, _ = build(model="cnn", optimizer__trainable="^head/")
    assert [text.partition(" are frozen, ")[0] for text in moving.warnings] == ["the parameters of norm"]
