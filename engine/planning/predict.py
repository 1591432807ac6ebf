"""Predicts the time and the memory of a step of a run, with the mesh and the settings that the run has."""

import copy
import dataclasses

import jax

from engine.compile.program import Program
from engine.config.schema import Config, MeshSpec
from engine.loop.trainer import Trainer
from engine.parallel.mesh import axes_of, make_mesh
from engine.planning import calibration
from engine.planning import machine as machines
from engine.planning.candidates import candidate_of
from engine.planning.record import PlanRecord, Predicted
from engine.planning.search import cost_model
from engine.run.log import logger


def predict(program: Program, config: Config, known: Predicted | None = None) -> Predicted:
    """Returns what `convoy plan --hardware=local` predicts for the mesh and the settings of a run.

    It traces the loss several times, and neither compiles nor allocates an array. The rates of the devices are
    measured ones if this machine was calibrated.

    Args:
        program: the program of the run.
        config: its config.
        known: the prediction of an earlier attempt; it is returned if the settings and the rates are the same.
    """
    devices = list(program.mesh.devices.flat)
    machine = calibration.stored(machines.of_devices(devices), devices)
    candidate = candidate_of(config.train, config.sharding, axes_of(config.mesh, devices))
    predicted = Predicted(
        candidate=f"{candidate}, {candidate.precision}",
        settings=candidate.overrides(),
        rows=program.batch_size,
        machine=dataclasses.asdict(machine),
    )
    if known is not None and known.has_answer_for(predicted):
        return known
    if len(program.shape_shares) > 1:
        problem = f"the batches have {len(program.shape_shares)} lengths, and a plan has the time of the longest"
        return dataclasses.replace(predicted, problem=problem)
    model = cost_model(on_one_device(program), config.sharding, config.data.prefetch, machine, (candidate.precision,))
    cost = model.cost(candidate)
    return dataclasses.replace(predicted, seconds=cost.seconds, memory=cost.memory, problem=cost.problem)


def observe(trainer: Trainer) -> PlanRecord:
    """Returns the record of an attempt, as an observer of the loop (`loop/observers.py`)."""
    program, config = trainer.program, trainer.config
    return PlanRecord(
        lambda known: predict(program, config, known),
        lambda: program.steps(config.train.steps_per_dispatch).device_bytes,
        trainer.directory,
        trainer.say if config.log.verbose else logger.info,
    )


def on_one_device(program: Program) -> Program:
    """Returns the program of a run as `Traces` takes it: for one CPU device, without the settings of a candidate.

    It shares the traced parts of the program, which do not depend on the mesh, so nothing is traced again.
    """
    spec = program.spec
    mesh = make_mesh(MeshSpec(), jax.local_devices(backend="cpu")[:1])
    used = set(spec.layout.used)
    layout = dataclasses.replace(spec.layout, mesh=mesh, remat="none", zero1=False, offload_optimizer=False, used=used)
    found = copy.copy(program)
    found.mesh = mesh
    found.spec = dataclasses.replace(spec, layout=layout, accumulate=1, opt_shardings=None, grad_shardings={})
    return found
