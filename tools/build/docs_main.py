"""mkdocs with the settings of mkdocs.yml.

`tools/docs` builds the site into build/site; `tools/docs serve` shows it at a local address while pages are edited.
"""

import os
import subprocess
import sys


def main(argv: list[str]) -> int:
    """Runs mkdocs with argv, or a strict build without any, and returns its exit code."""
    os.chdir(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    path = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1"}  # mkdocs-material prints 30 lines otherwise
    arguments = argv or ["build", "--strict", "--quiet"]
    return subprocess.run([sys.executable, "-m", "mkdocs", *arguments], env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
