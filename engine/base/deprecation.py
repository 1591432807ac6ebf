"""The warning about a name that goes away. CONTRIBUTING.md has the rule: it works for one more minor version."""

import warnings
from pathlib import Path

_ENGINE = str(Path(__file__).resolve().parents[1])


def warn_deprecated(what: str, use: str, *, removed: str) -> None:
    """Warns about something deprecated, at the line of the user's code that uses it.

    Args:
        what: the name, with its place, such as "task.target: 'engine.metrics.Mean'".
        use: what replaces it.
        removed: version that no longer has it, such as "0.4.0". A test fails once the engine has this version.
    """
    text = f"{what} is deprecated, and version {removed} will not have it. Use {use}."
    warnings.warn(text, FutureWarning, skip_file_prefixes=(_ENGINE,))
