"""ruff and pyright over the whole tree, with the settings of pyproject.toml.

`tools/lint` runs it; `tools/lint --fix` also formats, and corrects what ruff can.
"""

import os
import subprocess
import sys


def main(argv: list[str]) -> int:
    """Runs every check, and returns 1 if any of them found something."""
    if set(argv) - {"--fix"}:
        print(f"tools/lint: {' '.join(argv)}: the only option is --fix.", file=sys.stderr)
        return 1
    fix = "--fix" in argv
    os.chdir(os.environ.get("BUILD_WORKSPACE_DIRECTORY", "."))
    # pyright asks an interpreter for the installed packages: it must find those of this process.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    checks = {
        "ruff check": ["--fix"] if fix else [],
        "ruff format": [] if fix else ["--check"],
        "pyright": ["--pythonpath", sys.executable],
    }
    failed = []
    for check, options in checks.items():
        print("+", check, flush=True)
        if subprocess.run([sys.executable, "-m", *check.split(), *options], env=env, check=False).returncode:
            failed.append(check)
    if failed:
        print(f"tools/lint: {', '.join(failed)} found something.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
