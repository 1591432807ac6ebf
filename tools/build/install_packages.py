"""Installs a lock file into a folder with uv, and prints the name==version of each package there.

tools/build/python_env.bzl runs it with the interpreter of an environment that has pip and uv. uv is passed the
registry, folders, certificates and proxy of pip's configuration, which it does not read itself.
"""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys

# Settings of pip, and the same of uv. A setting that is a flag has no value.
_OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "no-index": "--no-index",
    "trusted-host": "--allow-insecure-host",
    "cert": "--cert",
}


def uv_options(pip_config: str) -> list[str]:
    """Returns the options for uv that correspond to the output of `pip config list`.

    As in pip, section [install] replaces [global], and a variable such as PIP_INDEX_URL replaces both.
    """
    settings = {}
    for source in ("global", "install", ":env:"):
        found = re.findall(rf"^{source}\.([\w-]+)='(.*)'$", pip_config, re.MULTILINE)
        settings |= {name: ast.literal_eval(f"'{value}'").split() for name, value in found}
    options = []
    for name, option in _OPTIONS.items():
        values = settings.get(name, [])
        if name == "no-index":
            options += [option] if values and values[0].lower() in ("1", "true", "yes", "on") else []
        else:
            options += [f"{option}={value}" for value in values]
    return options


def main(lock: str, folder: str) -> None:
    """Installs the packages of `lock` into `folder`, byte code included, and prints what `folder` contains."""
    listing = [sys.executable, "-m", "pip", "config", "list"]
    pip_config = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    with open(lock, encoding="utf-8") as file:
        hashes = ["--require-hashes"] if "--hash=" in file.read() else []
    # A lock file is complete, so that nothing is resolved (--no-deps). Tests run in a sandbox that cannot store byte
    # code next to a package: without --compile-bytecode each process would compile jax again.
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--compile-bytecode", *hashes]
    place = [f"--python={sys.executable}", f"--target={folder}", f"--requirement={lock}"]
    environment = {"UV_SYSTEM_CERTS": "1", "UV_HTTP_TIMEOUT": "180", **os.environ}
    if subprocess.run([*install, *place, *uv_options(pip_config)], env=environment, check=False).returncode:
        sys.exit(f"uv could not install {lock}; its message is above.")
    for package in importlib.metadata.distributions(path=[folder]):
        print(re.sub("[-_.]+", "_", package.metadata["Name"]).lower() + "==" + package.version)


if __name__ == "__main__":
    main(*sys.argv[1:])
