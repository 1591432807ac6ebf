"""Python and the packages of a lock file, as an external repository such as @pypi.

`python_env(name = "pypi", ...)` finds a Python interpreter, makes a virtual environment with pip and uv in it,
installs the packages of the lock file into a folder of the repository, and defines
  * `@pypi//:toolchain`, a toolchain that makes it the interpreter of all targets,
  * `@pypi//:site_packages`, a library with all packages,
  * `@pypi//jax`, `@pypi//ml_dtypes`, ...: the same under the name of each package.

`python_env(name = "pypi_test", base = "@pypi//:packages.txt", ...)` adds the packages of another lock file to those
of @pypi, and has no toolchain. Bazel fetches it when a target needs it.

Environment variables:
  CONVOY_PYTHON        the interpreter to use, as a path or a command name; without it, the first of `interpreters`
                       on PATH that fits
  CONVOY_REQUIREMENTS  which of the lock files to install: "newest" (the default) or "min"
The configuration of pip applies (PIP_INDEX_URL, pip.conf, ...), and so do the variables of uv.
"""

_PROBE = """
import sys
found, low, below = sys.version_info[:2], *(tuple(map(int, v.split("."))) for v in sys.argv[1:])
assert low <= found < below, "version %d.%d" % found
import ensurepip, venv
"""

# -P: a program imports what its target declares, not the files next to its main file.
_INTERPRETER = """#!/bin/sh
exec '{python}' -P "$@"
"""

_PACKAGES_BUILD = """{loads}
package(default_visibility = ["//visibility:public"])

exports_files(["packages.txt"])

# The folder is one link in the files of a target. Bazel considers the packages changed when the list of their
# versions has changed.
py_library(
    name = "site_packages",
    data = {data},
    imports = ["site-packages"],
    deps = {deps},
)
"""

_TOOLCHAIN_BUILD = """
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

        # The command of a version manager can exist and yet not start.
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

def _make_venv(rctx):
    """Makes the virtual environment with pip and uv, and returns the path of its interpreter."""
    rctx.report_progress("looking for Python")
    _run(rctx, [_find_python(rctx), "-m", "venv", "venv"])
    python = str(rctx.path("venv/bin/python3"))
    rctx.report_progress("installing uv")
    _run(
        rctx,
        [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"] +
        ["--require-hashes", "--requirement={}".format(rctx.path(rctx.attr.installer))],
        timeout = rctx.attr.timeout,
    )
    return python

def _lock(rctx):
    """Returns the lock file that CONVOY_REQUIREMENTS names; None if the base contains its packages already."""
    locks = {name: label for label, name in rctx.attr.requirements.items()}
    variant = rctx.os.environ.get("CONVOY_REQUIREMENTS", "") or "newest"
    if variant in rctx.attr.included_in_base:
        return None
    if len(locks) == 1:
        variant = locks.keys()[0]
    if variant not in locks:
        fail("CONVOY_REQUIREMENTS is '{}', not one of {}.".format(variant, ", ".join(sorted(locks))))
    return rctx.path(locks[variant])

def _python_env_impl(rctx):
    lock = _lock(rctx)
    script = rctx.path(rctx.attr.install)
    base = rctx.attr.base
    python = str(rctx.path(base).dirname.get_child("python3")) if base else _make_venv(rctx)

    version = _run(rctx, [python, "-c", "import platform; print(platform.python_version())"])
    packages = []
    if lock:
        rctx.report_progress("installing {}".format(lock.basename))
        packages = sorted(_run(rctx, [python, script, lock, "site-packages"], timeout = rctx.attr.timeout).split("\n"))
    rctx.file("packages.txt", "\n".join(["python==" + version] + packages) + "\n")
    rctx.file("python3", _INTERPRETER.format(python = python))

    kind = _RULES_PYTHON if rctx.attr.rules_python else _NATIVE
    build = _PACKAGES_BUILD.format(
        data = ["packages.txt", "site-packages"] if lock else ["packages.txt"],
        deps = [str(base).replace(":packages.txt", ":site_packages")] if base else [],
        loads = kind.library_load + ("" if base else kind.runtime_load),
    )
    if not base:
        build += _TOOLCHAIN_BUILD.format(
            interpreter = kind.interpreter.format(
                python = python,
                major = version.split(".")[0],
                minor = version.split(".")[1],
            ),
            rules = kind.rules,
        )
    rctx.file("BUILD.bazel", build)
    for package in packages:
        name = package.split("==")[0]
        rctx.file(name + "/BUILD.bazel", _PACKAGE_BUILD.format(loads = kind.library_load, name = name))

python_env = repository_rule(
    implementation = _python_env_impl,
    attrs = {
        "base": attr.label(
            allow_single_file = True,
            doc = "packages.txt of the repository whose interpreter and packages this one adds to.",
        ),
        "included_in_base": attr.string_list(
            doc = "Values of CONVOY_REQUIREMENTS for which the lock file of the base contains these packages.",
        ),
        "install": attr.label(
            default = "//tools/build:install_packages.py",
            allow_single_file = True,
        ),
        "installer": attr.label(
            default = "//tools/locks:installer.lock",
            allow_single_file = True,
            doc = "The lock file of uv.",
        ),
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
        "timeout": attr.int(default = 3600, doc = "Seconds that an installation may take."),
    },
    environ = ["CONVOY_PYTHON", "CONVOY_REQUIREMENTS"],
)
