"""Explains a config as a function: its mesh, its state, and the FLOPs, memory and collectives of a step."""

from collections.abc import Iterator

from engine.api.prepared import AnyConfig, prepare, resolve_config, run_of, set_up_absent_devices
from engine.base.errors import ConfigError
from engine.base.formatting import size_text
from engine.base.user_errors import describe as describe_error
from engine.checkpoint import frozen as saved_once
from engine.compile import step_costs as compiled_step
from engine.compile.flops import has_unknown_length
from engine.compile.out_of_memory import out_of_memory_reported
from engine.compile.program import Program
from engine.compile.report import describe, describe_collectives, describe_flops, describe_frozen
from engine.compile.xla_warnings import rematerialization_explained
from engine.config.hardware import find as find_hardware
from engine.config.schema import Optimizer
from engine.data.adapt import descriptions
from engine.loop.events.replica_check import coverage
from engine.training.optimizer_parts import uses_matrices
from engine.training.task import rounding_note


def explain(
    config: AnyConfig, *, devices: int | None = None, collectives: bool = True, hardware: str | None = None
) -> str:
    """Returns a description of the mesh, the state on each device, and the FLOPs, memory and collectives of a step.

    Call it before JAX starts its devices: it creates CPU devices in place of the real ones.

    Args:
        config: as for `train`.
        devices: number of devices; None: the product of the mesh axes.
        collectives: whether to compile a step, which takes long for large models, and list its collectives.
        hardware: a target (`parallel/targets.py`), for which the step is compiled; None: CPU devices.
    """
    parts = explain_parts(config, devices=devices, collectives=collectives, hardware=hardware)
    return "\n".join(parts)


def explain_parts(
    config: AnyConfig,
    *,
    devices: int | None,
    collectives: bool,
    hardware: str | None = None,
    run: str | None = None,
) -> Iterator[str]:
    """Yields the parts of `explain` as soon as they are known.

    `run` is the text from which the config was loaded. If it is a run directory, choices that the run has stored hold.
    """
    if devices is not None and devices < 1:
        raise ConfigError(f"--devices = {devices}: allowed is a whole number from 1.")
    if devices is not None and hardware is not None:
        raise ConfigError(f"--devices = {devices}: --hardware={hardware} has a number of devices. Remove --devices.")
    directory = run_of(config if run is None else run)
    config, found = set_up_absent_devices(resolve_config(config, cached=hardware is None), devices, hardware)
    sizes: list[str] = []
    prepared = prepare(config, devices=found, directory=directory).with_sizes(sizes.append)
    built, total = prepared.build_program()
    yield from sizes
    mesh, state = built.mesh, built.abstract_state.to_tree()
    yield describe(config.mesh, config.sharding, mesh, state, built.spec.model.names, total)
    if frozen := describe_frozen(state["params"], built.spec.model.trained):
        yield frozen
        yield _saves_line(built)
    yield _roles_table(built, config.optimizer)
    yield from built.spec.optimizer.details
    yield coverage(config.resilience.replica_check, state)
    if (every := config.resilience.gradient_check) is not None:
        from engine.loop.events.gradient_check import description

        yield description(every, mesh.size)
    yield from descriptions(prepared.sources, config.data.shuffle, built.batch_size)
    yield from (f"warning: {text}" for text in built.warnings)
    spec = built.spec
    if note := rounding_note(spec.task, built.abstract_batch.examples, spec.compute_dtype, spec.layout.precision):
        yield note
    traced = built.trace(1)  # the longest, if the batches have several lengths
    yield _flops_line(built, has_unknown_length(traced.jaxpr.jaxpr))
    if collectives and (mesh.size > 1 or hardware is not None):
        warnings: list[str] = []
        with rematerialization_explained(warnings.append), out_of_memory_reported(config.train, config.mesh):
            compiled = compiled_step.read(built, traced.lower().compile())
        yield from warnings
        row = find_hardware(mesh.devices.flat[0].device_kind)
        yield compiled_step.describe(compiled, None if row is None else row.hbm_bytes)
        yield describe_collectives(compiled.collectives, mesh.devices.flat[0].platform)


def _roles_table(built: Program, optimizer: Optimizer) -> str:
    """Returns a line about the role of each trained parameter, from the loss, as far as no other choice is stored."""
    roles, model = built.spec.optimizer.roles, built.spec.model
    decayed = [path for path in model.trained if roles.decays(optimizer.decay, path)]
    if not (roles.is_traced or (roles.is_earlier and uses_matrices(optimizer))):
        from engine.training.traced_roles import traced_roles

        roles = traced_roles(built.spec, built.abstract_batch)
    return roles.table({path: model.params[path] for path in model.trained}, decayed)


def _saves_line(built: Program) -> str:
    """Returns a line about the bytes of a checkpoint and of the frozen parameters, which are saved once."""
    state, constant = built.abstract_state.to_checkpoint(), built.spec.constant
    if not saved_once.worth_it(state, constant):
        return f"each checkpoint: {size_text(saved_once.size_of(state))}, frozen parameters included"
    once = saved_once.only(state, constant)
    each = saved_once.without(state, constant)
    return (
        f"each checkpoint: {size_text(saved_once.size_of(each))}; frozen parameters, saved once for the run: "
        f"{size_text(saved_once.size_of(once))}"
    )


def _flops_line(built: Program, at_least: bool) -> str:
    """Returns a line about the FLOPs of a traced step; of several lengths, the longest.

    Args:
        built: the program, whose step has been traced.
        at_least: as for `describe_flops`.
    """
    built.shape_shares = [*[0.0] * (len(built.shape_shares) - 1), 1.0]
    try:
        model = built.flops_per_step
    except Exception as error:  # raised by the author's code, and a run goes without this count, too
        return f"FLOPs of a step are left out: tracing the loss for one device failed: {describe_error(error)}"
    return describe_flops(model, built.hardware_flops_per_step, at_least)
