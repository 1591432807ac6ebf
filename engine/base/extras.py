"""The command that installs an extra of this package: the optional libraries of pyproject.toml."""

import shlex
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "convoy-engine"


def install_command(extra: str) -> str:
    """Returns the command that adds an extra to this environment.

    pip finds the extras of a package that is installed, from a wheel or from a clone, by its name. For code that is not
    installed, such as a clone on PYTHONPATH, the command names its folder.
    """
    try:
        metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        clone = Path(__file__).resolve().parents[2]
        return f"pip install -e {shlex.quote(f'{clone}[{extra}]')}"
    return f"pip install '{DISTRIBUTION}[{extra}]'"
