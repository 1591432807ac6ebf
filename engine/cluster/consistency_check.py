"""Checks that all processes of a run have the same config, code and libraries.

Processes that differ compile different programs: the run then hangs or computes wrong results. Process 0 compares the
facts of all processes before any device is used. A fact is a name and a text, such as `jax: 0.12.0`.
"""

import hashlib
import importlib.metadata
import json
import platform
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from engine.base.errors import ConvoyError
from engine.cluster import group, kv_store, timeouts
from engine.cluster.identity import process_list
from engine.cluster.peer_failure import LostPeer

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SHOWN = 8  # differences of a process that the error names
_ENGINE = Path(__file__).parents[1]
type _Different = tuple[str, list[str], int]  # host, the first differences, and the number of all
_MODULE = "module "  # prefix of facts that are compared only if both processes have them


class InconsistentProcesses(ConvoyError):
    """The processes of a run were started with different configs, code, libraries or data."""

    everywhere = True


def software(modules: Iterable[str]) -> dict[str, str]:
    """Returns the versions of Python and of the libraries, and hashes of the source files of the engine and the user.

    Args:
        modules: modules that the config names; the loaded modules of their packages are included.
    """
    facts = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            facts[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            facts[library] = "none"
    for path in sorted(_ENGINE.rglob("*.py")):
        facts[str(path.relative_to(_ENGINE.parent))] = _hash_of_file(path)
    packages = {module.partition(".")[0] for module in modules} - {"engine", *LIBRARIES}
    for module, loaded in sorted(sys.modules.items()):
        file = getattr(loaded, "__file__", None)
        if module.partition(".")[0] in packages and file is not None:
            facts[f"{_MODULE}{module}"] = _hash_of_file(Path(file))
    return facts


def check_consistency(facts: Mapping[str, str], what: str) -> None:
    """Returns when all processes have called it with the same facts.

    Processes compare hashes of the facts. Only a process whose hash differs reads the facts of process 0.

    Args:
        facts: facts of this process. Facts of a module are compared only if both processes have loaded it.
        what: what is compared, one word.

    Raises:
        InconsistentProcesses: a process differs from process 0. Raised in every process, with all differences.
        LostPeer: some processes have not called it in time.
    """
    host, topic = socket.gethostname(), f"the comparison of {what}"
    key, digest = f"facts/{what}", _hash(json.dumps(facts, sort_keys=True).encode(), size=16)
    if group.is_primary():
        kv_store.put(key, json.dumps(dict(facts)))
    first_host, expected = group.broadcast((host, digest), topic, timeouts.CONSISTENCY_S)
    mine = None
    if digest != expected:
        different = differences(json.loads(kv_store.try_get(key) or "{}"), facts)
        mine = (host, different[:SHOWN], len(different)) if different else None

    def judge(found: Mapping[int, _Different | None], missing: list[int]) -> None:
        if missing:
            raise LostPeer(
                f"process 0 has waited {timeouts.CONSISTENCY_S:g} s for {process_list(missing)} to compare {what}. "
                "Check why it is late, then start the same command again."
            )
        if different := {i: entry for i, entry in found.items() if entry is not None}:
            raise InconsistentProcesses(_sentence(different, first_host))

    try:
        group.decide(mine, judge, topic, timeouts.CONSISTENCY_S)
    finally:
        if group.is_primary():
            kv_store.delete(key)


def differences(first: Mapping[str, str], mine: Mapping[str, str]) -> list[str]:
    """Returns a line `name: value of this process, but value in process 0` for each fact that differs."""
    return [
        f"{name}: {mine.get(name, 'none')}, but {first.get(name, 'none')} in process 0"
        for name in {**first, **mine}
        if first.get(name) != mine.get(name) and not (name.startswith(_MODULE) and not (name in first and name in mine))
    ]


def _sentence(others: Mapping[int, _Different], first_host: str) -> str:
    shown = []
    for i, (host, found, number) in sorted(others.items())[:SHOWN]:
        where = f"process {i} on {host} differs from process 0 on {first_host}"
        more = [f"... and {number - len(found)} more"] if number > len(found) else []
        shown.append("\n  ".join([f"{where}:", *found, *more]))
    if len(others) > SHOWN:
        shown.append(f"{len(others) - SHOWN} more processes differ.")
    return "\n".join(
        [
            "the processes of this run differ.",
            *shown,
            "Start all of them with the same command, code, libraries and data.",
        ]
    )


def _hash(content: bytes, size: int = 6) -> str:
    return hashlib.blake2b(content, digest_size=size).hexdigest()


def _hash_of_file(path: Path) -> str:
    try:
        return _hash(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror})"
