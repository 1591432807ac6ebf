"""Whether all processes of a run were started alike: one config, one code, one set of libraries.

Owns: what counts as the software of a process, the comparison, and the error that names who differs in what. Does not
own: what else is compared (the caller hands it over), or who the processes are (`processes.py`).

Ranks that differ compile different programs, and then wait for each other for ever or compute something that nobody
asked for. Each compares itself with process 0 by the store of `kv_store.py`, before any device is needed.

Terms. *Fact*: a name and a text, as `jax: 0.12.0`. *Package*: the first word of a module's name.
"""

import hashlib
import importlib.metadata
import json
import platform
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from engine.cluster import kv_store
from engine.cluster.peers import LostPeer
from engine.cluster.processes import count, index, is_primary
from engine.config.errors import ConvoyError

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
WAIT_S = 300.0  # hosts that import from a cold disk may be minutes behind others
SHOWN = 8  # differences of a process that the error names
_ENGINE = Path(__file__).parents[1]
_turns: Counter[str] = Counter()  # how often each was compared: texts of an earlier time must not count
_MODULE = "module "  # before the name of a fact that counts only where both have it


class InconsistentProcesses(ConvoyError):
    """The processes of a run were started with different configs, code, libraries or data."""

    everywhere = True


def software(modules: Iterable[str]) -> dict[str, str]:
    """Returns the versions of Python and of the libraries, and a hash of each source file of the engine and the user's.

    Args:
        modules: names of modules that the config names; what is loaded of their packages counts.
    """
    facts = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "none"
    for path in sorted(_ENGINE.rglob("*.py")):
        facts[str(path.relative_to(_ENGINE.parent))] = _hash(path)
    packages = {name.partition(".")[0] for name in modules} - {"engine", *LIBRARIES}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in packages and file is not None:
            facts[f"{_MODULE}{name}"] = _hash(Path(file))
    return facts


def check_consistency(facts: Mapping[str, str], what: str) -> None:
    """Returns when all processes have come here with the same facts.

    Args:
        facts: of this process. Those of a module count where both processes have loaded it.
        what: is compared, one word, the same in every process, which all come here equally often.

    Raises:
        InconsistentProcesses: a process differs from process 0; in every process, with the name of each and its
        differences. ConvoyError: not all came.
    """
    if count() == 1:
        return
    _turns[what] += 1
    place = f"alike/{what}/{_turns[what]}"
    if is_primary():
        kv_store.put(f"{place}/first", json.dumps([socket.gethostname(), dict(facts)]))
    else:
        told = kv_store.get(f"{place}/first", WAIT_S)
        if told is None:
            raise _absent([0], what)
        host, first = json.loads(told)
        if lines := differences(first, facts):
            mine = [socket.gethostname(), host, lines]
            kv_store.put(f"{place}/others/{index()}", json.dumps(mine))
    if missing := kv_store.barrier(f"alike-{what}", WAIT_S):
        raise _absent(missing, what)
    others = kv_store.entries(f"{place}/others")
    if others:
        raise InconsistentProcesses(_sentence({int(i): json.loads(text) for i, text in others.items()}))


def differences(first: Mapping[str, str], mine: Mapping[str, str]) -> list[str]:
    """Returns a line `name: value here, but value in process 0` for each fact that differs."""
    return [
        f"{name}: {mine.get(name, 'none')}, in process 0 {first.get(name, 'none')}"
        for name in {**first, **mine}
        if first.get(name) != mine.get(name) and not (name.startswith(_MODULE) and not (name in first and name in mine))
    ]


def _sentence(others: Mapping[int, tuple[str, str, list[str]]]) -> str:
    lines = []
    for i, (host, first_host, found) in sorted(others.items()):
        where = f"process {i} on {host} differs from process 0 on {first_host}"
        more = [f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        lines.append("\n  ".join([f"{where}:", *found[:SHOWN], *more]))
    shown, hidden = lines[:SHOWN], lines[SHOWN:]
    if hidden:
        shown.append(f"{len(hidden)} more processes differ.")
    return "\n".join(
        [
            "the processes of this run were not started alike.",
            *shown,
            "Start all of them with the same command, code, libraries and data.",
        ]
    )


def _absent(missing: list[int], what: str) -> ConvoyError:
    return LostPeer(
        f"process {index()} has waited {WAIT_S:g} s for process {', '.join(map(str, missing))} to compare {what}. "
        "See what holds it up, then start the same command again."
    )


def _hash(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=6).hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror})"
