"""Compiles the programs of a run before the run starts, as a function. `compile/program_store.py` loads them."""

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from engine.api.prepared import AnyConfig, Prepared, prepare, resolve_config, run_of, set_up
from engine.base.errors import ConfigError
from engine.base.formatting import size_text
from engine.base.types import Device
from engine.checkpoint.warm_start import is_set
from engine.cluster import group
from engine.compile.build import check_unrolled
from engine.compile.compiler import ProgramCompiler
from engine.compile.program import Program
from engine.compile.program_store import StoredPrograms
from engine.config.text import to_text
from engine.loop.evaluation import Evaluator
from engine.loop.evaluations import build_evaluations
from engine.parallel import targets
from engine.parallel.digest import Digests
from engine.parallel.memory import compiled_bytes
from engine.storage.mounts import local_text


@dataclasses.dataclass(frozen=True)
class Precompiled:
    """A program that was compiled.

    Attributes:
        name: name of the program, such as "step".
        seconds: time of the compilation, tracing included.
        device_bytes: memory that the program needs on each device.
    """

    name: str
    seconds: float
    device_bytes: int


def precompile(
    config: AnyConfig,
    *,
    devices: Sequence[Device] | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    run: str | None = None,
) -> Iterator[Precompiled]:
    """Compiles the programs of a run, and yields each: first state, step, K steps and evaluations.

    Without `out`, they are for JAX's persistent compilation cache. In several processes, each must call this function,
    and the primary writes to `out`.

    Args:
        config: as for `engine.train`.
        devices: devices of a topology; None: those of this machine.
        out: folder for the executables, which a run with `cache.programs` loads.
        say: called with sentences about the progress.
        run: as for `explain_parts`.

    Raises:
        ConfigError: the cache is off, and no folder is given; or the folder cannot be written.
    """
    directory = run_of(config if run is None else run)
    config = resolve_config(config, cached=out is None)  # `Compiler.compile` compiles for a folder without the cache
    if out is None and not config.cache.compiled:
        raise ConfigError(
            "cache.compiled = False: nothing would keep the compiled programs. Write them to a folder with --out=DIR, "
            "or set cache.compiled=True."
        )
    config = set_up(config)
    folder = out if group.is_primary() else None  # every process of the job loads its files
    if folder is not None:
        _make_folder(folder)
    prepared = prepare(config, devices=devices, directory=directory).with_sizes(say)
    config = prepared.config
    program, _ = prepared.build_program(step=0)
    check_unrolled(program, config.train)
    program.compiler = ProgramCompiler(say)
    if folder is not None:
        program.compiler = StoredPrograms(folder, store=True, config=to_text(config), say=say)
    evaluations = build_evaluations(
        config.evaluations, prepared.evaluation_sources, program.evaluation, config.train.global_batch_size
    )
    steps, warm_start = sorted({1, config.train.steps_per_dispatch}), is_set(config.init)
    for name, compile_ in [*_programs(program, evaluations, steps, warm_start), *_later(prepared, program, steps)]:
        say(f"compiling: {name}")
        begin = time.monotonic()
        compiled = compile_()
        yield Precompiled(name, time.monotonic() - begin, max(map(compiled_bytes, compiled)))
    if out is None:  # small programs, which a run compiles by calling them
        program.compile_finite()
        state = program.abstract_state.to_tree()
        Digests(state).compile(state)


def _make_folder(path: Path) -> None:
    """Creates the folder for the executables, with access for the user alone, before anything is compiled."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--out={path}: cannot be written ({reason}). Choose another folder.") from error


def precompile_for(
    config: AnyConfig, hardware: str | None, out: str | None, say: Callable[[str], None], run: str | None = None
) -> Iterator[str]:
    """Compiles the programs of a run for a target, and yields lines for the user.

    Args:
        config: as for `engine.train`.
        hardware: a target; None: the devices of this machine.
        out: folder for the executables; None: the compilation cache.
        say: called with the progress.
        run: as for `explain_parts`.
    """
    target = None if hardware is None else targets.parse(hardware)
    folder = None if out is None else Path(local_text(out))
    for each in precompile(config, devices=target and target.devices(), out=folder, say=say, run=run):
        yield f"{each.name}: {each.seconds:.1f} s, {size_text(each.device_bytes)} on each device"
    if folder is None:
        yield "The programs are in the compilation cache; a start on this kind of machine loads them."
    else:
        yield f"The programs are in {out}. Start the job with --config.cache.programs={out}."


def _later(
    prepared: Prepared, program: Program, steps: Sequence[int]
) -> Iterator[tuple[str, Callable[[], list[jax.stages.Compiled]]]]:
    """Yields the programs of the steps at which groups are unfrozen, as `_programs` does."""
    while program.spec.until < math.inf:
        compiler = program.compiler
        program, _ = prepared.build_program(step=int(program.spec.until))
        program.compiler = compiler
        for name, compile_ in [*_programs(program, (), steps, warm_start=True)][1:]:
            yield name + program.spec.suffix, compile_


def _programs(
    program: Program, evaluations: Sequence[Evaluator], steps: Sequence[int], warm_start: bool
) -> Iterator[tuple[str, Callable[[], list[jax.stages.Compiled]]]]:
    """Yields the name of each program, or of those that differ in the shapes of batches, and what compiles it."""
    yield "first state", lambda: [program.compile_first_state()]
    if warm_start:
        yield "optimizer state of init.checkpoint", lambda: [program.compile_optimizer_state()]
    for k in steps:
        yield "step" if k == 1 else f"{k} steps", lambda k=k: program.compile_steps(k)
    for evaluation in evaluations:
        yield (
            f"evaluation {evaluation.name}",
            lambda evaluation=evaluation: evaluation.compile(program.abstract_state, program.compiler),
        )
