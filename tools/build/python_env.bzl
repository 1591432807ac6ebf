"""Python and the packages of the lock file, as the external repository @pypi.

`python_env(name = "pypi", ...)` finds a Python interpreter, has pip install the
lock file into a folder of the repository, and offers
  * `@pypi//:toolchain`, a toolchain that makes it the interpreter of all targets,
  * `@pypi//jax`, `@pypi//ml_dtypes`, ...: a library for each installed package.

Environment variables:
  CONVOY_PYTHON        the interpreter to use, as a path or a command name; without
                       it, the first of `interpreters` on PATH that fits
  CONVOY_REQUIREMENTS  which of the lock files to install (default: "newest"),
                       where there are several
pip reads its own variables and configuration as usual (PIP_INDEX_URL, ...).
"""

_PROBE = """
import sys
found, low, below = sys.version_info[:2], *(tuple(map(int, v.split("."))) for v in sys.argv[1:])
assert low <= found < below, "version %d.%d" % found
import ensurepip, venv
"""

_LIST_PACKAGES = """
import importlib.metadata, re, sys
for d in importlib.metadata.distributions(path=sys.argv[1:]):
    print(re.sub("[-_.]+", "_", d.metadata["Name"]).lower() + "==" + d.version)
"""

# -P: a program imports what its target declares, not what lies beside its file.
_INTERPRETER = """#!/bin/sh
exec '{python}' -P "$@"
"""

_BUILD = """{loads}
package(default_visibility = ["//visibility:public"])

# The folder is one link in the files of a target. Bazel takes the packages as
# changed when the list of their versions has changed.
py_library(
    name = "site_packages",
    data = [
        "packages.txt",
        "site-packages",
    ],
    imports = ["site-packages"],
)

py_runtime(
    name = "runtime",
    python_version = "PY3",
    {interpreter},
)

py_runtime_pair(
    name = "runtime_pair",
    py3_runtime = ":runtime",
)

toolchain(
    name = "toolchain",
    toolchain = ":runtime_pair",
    toolchain_type = "{rules}:toolchain_type",
)
"""

_PACKAGE_BUILD = """{loads}
py_library(
    name = "{name}",
    visibility = ["//visibility:public"],
    deps = ["//:site_packages"],
)
"""

# What differs between Bazel's own Python rules and those of rules_python.
_NATIVE = struct(
    rules = "@bazel_tools//tools/python",
    library_load = "",
    runtime_load = """load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")
""",
    interpreter = """interpreter = "python3",
    stub_shebang = "#!{python}\"""",
)
_RULES_PYTHON = struct(
    rules = "@rules_python//python",
    library_load = """load("@rules_python//python:py_library.bzl", "py_library")
""",
    runtime_load = """load("@rules_python//python:py_runtime.bzl", "py_runtime")
load("@rules_python//python:py_runtime_pair.bzl", "py_runtime_pair")
""",
    interpreter = """interpreter_path = "{python}",
    interpreter_version_info = {{"major": "{major}", "minor": "{minor}"}}""",
)

def _run(rctx, arguments, timeout = 600):
    result = rctx.execute(arguments, timeout = timeout)
    if result.return_code != 0:
        fail("{} ended with {}:\n{}{}".format(
            " ".join([str(a) for a in arguments]),
            result.return_code,
            result.stdout,
            result.stderr,
        ))
    return result.stdout.strip()

def _find_python(rctx):
    """Returns the path of the first interpreter that fits."""
    wanted = rctx.os.environ.get("CONVOY_PYTHON", "")
    folders = [f for f in rctx.os.environ.get("PATH", "").split(":") if f.startswith("/")]
    paths = []
    for name in [wanted] if wanted else rctx.attr.interpreters:
        paths += [name] if "/" in name else [f + "/" + name for f in folders]

    tried = []
    for path in paths:
        if not rctx.path(path).exists:
            continue

        # The command of a version manager can be there and yet not start.
        probe = rctx.execute([path, "-c", _PROBE, rctx.attr.python_min, rctx.attr.python_below], timeout = 60)
        if probe.return_code == 0:
            return path
        tried.append("  {}: {}".format(path, probe.stderr.strip().split("\n")[-1]))
    fail("\n".join([
        "No Python from {} to below {} with the modules venv and ensurepip. Tried:".format(
            rctx.attr.python_min,
            rctx.attr.python_below,
        ),
    ] + (tried or ["  nothing on PATH"]) + [
        "Name one with CONVOY_PYTHON; on Debian and Ubuntu the two modules come with apt-get install python3-venv.",
    ]))

def _python_env_impl(rctx):
    locks = {name: label for label, name in rctx.attr.requirements.items()}
    variant = rctx.os.environ.get("CONVOY_REQUIREMENTS", "") or "newest"
    if len(locks) == 1:
        variant = locks.keys()[0]
    if variant not in locks:
        fail("CONVOY_REQUIREMENTS is '{}', not one of {}.".format(variant, ", ".join(sorted(locks))))
    lock = rctx.path(locks[variant])

    rctx.report_progress("looking for Python")
    _run(rctx, [_find_python(rctx), "-m", "venv", "venv"])
    python = str(rctx.path("venv/bin/python3"))
    rctx.report_progress("installing {}".format(lock.basename))
    _run(
        rctx,
        [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"] +
        ["--target=site-packages", "--requirement={}".format(lock)] +
        (["--require-hashes"] if "--hash=" in rctx.read(lock) else []),
        timeout = rctx.attr.timeout,
    )

    version = _run(rctx, [python, "-c", "import platform; print(platform.python_version())"])
    packages = sorted(_run(rctx, [python, "-c", _LIST_PACKAGES, "site-packages"]).split("\n"))
    rctx.file("packages.txt", "\n".join(["python==" + version] + packages) + "\n")

    kind = _RULES_PYTHON if rctx.attr.rules_python else _NATIVE
    rctx.file("python3", _INTERPRETER.format(python = python))
    rctx.file("BUILD.bazel", _BUILD.format(
        interpreter = kind.interpreter.format(
            python = python,
            major = version.split(".")[0],
            minor = version.split(".")[1],
        ),
        loads = kind.library_load + kind.runtime_load,
        rules = kind.rules,
    ))
    for package in packages:
        name = package.split("==")[0]
        rctx.file(name + "/BUILD.bazel", _PACKAGE_BUILD.format(loads = kind.library_load, name = name))

python_env = repository_rule(
    implementation = _python_env_impl,
    attrs = {
        "interpreters": attr.string_list(
            default = ["python3.13", "python3.12", "python3.14", "python3"],
            doc = "Commands to try, in this order.",
        ),
        "python_below": attr.string(default = "3.15"),
        "python_min": attr.string(default = "3.12"),
        "requirements": attr.label_keyed_string_dict(
            allow_files = True,
            mandatory = True,
            doc = "Lock files, each with the name that CONVOY_REQUIREMENTS has for it.",
        ),
        "rules_python": attr.bool(
            default = False,
            doc = "Whether the Python rules are those of rules_python, not Bazel's own.",
        ),
        "timeout": attr.int(default = 3600, doc = "Seconds that pip may take."),
    },
    environ = ["CONVOY_PYTHON", "CONVOY_REQUIREMENTS"],
)
