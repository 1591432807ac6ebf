"""The paths of `init`: which checkpoint gives an array of this model, and the path of the array there.

An entry of `paths` is a prefix of whole names, or a regular expression if it starts with "^". The first matching
regular expression decides about an array, otherwise the longest matching prefix. The empty prefix matches every array.
"""

import re
from collections.abc import Mapping, Sequence

from engine.base.errors import ConfigError, did_you_mean
from engine.checkpoint.tree_compat import SHOWN
from engine.config.schema import Init

type Paths = Mapping[str, str | None]


def owners(init: Init, here: Sequence[str]) -> dict[str, str]:
    """Returns key of an array here -> name of the source that decides about it, "" for `init.checkpoint`.

    Args:
        init: the section of the config.
        here: keys of this model's arrays: section and path.

    Raises:
        ConfigError: an entry of `paths` matches no array, or two sources name one array.
    """
    names = {key: key.partition("/")[2] for key in here}
    _check("init", init.paths, set(names.values()))
    found: dict[str, str] = {}
    for source, section in init.sources.items():
        _check(f"init.sources.{source}", section.paths, set(names.values()))
        for key, name in names.items():
            if _entry(name, section.paths) is None:
                continue
            if key in found:
                raise ConfigError(
                    f"init.sources.{source}.paths: {name} is also in init.sources.{found[key]}.paths. An array has one "
                    "source. Use longer prefixes."
                )
            found[key] = source
    return {key: found.get(key, "") for key in here if key in found or init.checkpoint}


def translate(name: str, paths: Paths) -> str | None:
    """Returns the path there of an array here: its own path if no entry matches, None if it stays random."""
    entry = _entry(name, paths)
    if entry is None:
        return name
    to = paths[entry]
    if to is None:
        return None
    if entry.startswith("^"):
        return re.sub(entry, to, name, count=1)
    return "/".join(filter(None, (to.strip("/"), name.removeprefix(entry.rstrip("/")).strip("/"))))


def _entry(name: str, paths: Paths) -> str | None:
    """Returns the entry that decides about an array."""
    for entry in paths:
        if entry.startswith("^") and re.search(entry, name):
            return entry
    return max((entry for entry in paths if _has_prefix(name, entry)), key=len, default=None)


def _has_prefix(name: str, prefix: str) -> bool:
    return not prefix.strip("/") or f"{name}/".startswith(prefix.rstrip("/") + "/")


def _check(where: str, paths: Paths, names: set[str]) -> None:
    for entry in paths:
        kind = "matches the regular expression" if entry.startswith("^") else "has this prefix"
        if any(re.search(entry, name) if entry.startswith("^") else _has_prefix(name, entry) for name in names):
            continue
        tops = sorted({name.rpartition("/")[0] or name for name in names})
        found = "no path of this model" if entry.startswith("^") else "no parameter of this model"
        raise ConfigError(
            f"{where}.paths.{entry}: {found} {kind}.{did_you_mean(entry, tops)} "
            f"Prefixes here: {', '.join(tops[:SHOWN])}{' ...' if len(tops) > SHOWN else ''}."
        )
