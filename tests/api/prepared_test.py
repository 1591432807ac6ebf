"""What a config describes: its resolution, its devices, and its data, Task and program."""

import dataclasses

import jax
import pytest

from engine.api import prepared
from engine.api.objects import Objects
from engine.base.errors import ConfigError
from engine.config.text import to_text
from engine.run.directory import RunDirectory
from tests import runs, zoo


@pytest.mark.parametrize("on", [True, False])
def test_compile_cache_is_enabled_by_the_config(on, monkeypatch):
    sizes = []
    monkeypatch.setattr("engine.compile.cache.enable", sizes.append)
    prepared.set_up_devices(runs.config(cache__compiled=on, cache__max_gib=3.0))
    assert sizes == [3.0] * on


def test_resume_keeps_the_number_of_cpu_devices(tmp_path, monkeypatch):
    zoo.program(zoo.Classify()).init()
    directory = RunDirectory.open(tmp_path)
    directory.write_config_text(to_text(runs.config(mesh__cpu_devices=3)))
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    with pytest.raises(ConfigError, match=r"mesh.cpu_devices = 3: JAX has already started"):
        prepared.set_up_devices(runs.config(mesh__cpu_devices="auto"), directory)


def test_resolve_config_accepts_a_config_dict():
    from engine.config import draft

    config = prepared.resolve_config(draft.draft_of(runs.config()))
    assert dataclasses.asdict(config)["train"]["global_batch_size"] == 16


def test_compilation_cache_is_switched_off_for_absent_devices():
    config = runs.config(cache__compiled=True)
    assert prepared.resolve_config(config, cached=False).cache.compiled is False
    assert prepared.resolve_config(config) is config


def test_objects_replace_targets_and_sources_are_named_by_their_section():
    task, source = zoo.Classify(), zoo.source()
    found = prepared.prepare(runs.config(), Objects(task=task, evaluation_data={"heldout": source}))
    assert found.task is task and found.evaluation_sources["heldout"] is source
    assert found.sources == {"data": found.source, "evaluations.heldout.data": source}


@pytest.mark.slow
def test_program_has_the_chosen_sizes():
    auto = runs.config(train__global_batch_size="auto", train__memory_gib=1.0, data__n=16, evaluations={})
    found = prepared.prepare(auto, devices=jax.devices()[:1]).with_sizes()
    size = found.config.train.global_batch_size
    assert found.build_program()[0].batch_size == size == 16  # an epoch
    assert found.build_program(dataclasses.replace(found.config.train, global_batch_size=4))[0].batch_size == 4
