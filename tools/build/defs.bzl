"""The Python rules of this project. BUILD files load them from here only."""

load("@rules_python//python:defs.bzl", _py_binary = "py_binary", _py_library = "py_library", _py_test = "py_test")

py_library = _py_library

# Settings of a test that starts one process after the other: not in --config=fast.
SUBPROCESS = {
    "size": "medium",
    "tags": ["multiprocess"],
}

# Of one that starts several at once: alone, too, on a machine of two cores.
MULTIPROCESS = {
    "size": "medium",
    "tags": [
        "cpu:2",
        "multiprocess",
    ],
}

def _main_file_impl(ctx):
    ctx.actions.write(ctx.outputs.out, "\n".join([
        "import sys",
        "",
        "from tools.build.%s import main" % ctx.attr.runner,
        "",
        'if __name__ == "__main__":',
        "    sys.exit(main(%r + sys.argv[1:]))" % ctx.attr.args_of_main,
        "",
    ]))

# A main file of its own for each target, since one source file in two targets of a
# package breaks the precompiling of rules_python.
_main_file = rule(
    implementation = _main_file_impl,
    attrs = {
        "args_of_main": attr.string_list(),
        "out": attr.output(),
        "runner": attr.string(mandatory = True),
    },
)

def py_binary(name, runner, args_of_main = [], deps = [], **kwargs):
    """A program: tools/bazel run //PACKAGE:NAME -- --flag=value

    Args:
      name: name of the target.
      runner: a file of tools/build without .py, whose main(argv) is run.
      args_of_main: arguments that come before those of the command line.
      deps: what the program imports.
      **kwargs: as for Bazel's py_binary.
    """
    main = "_" + name + "_main.py"
    testonly = kwargs.get("testonly", False)
    _main_file(
        name = "_" + name + "_main",
        args_of_main = args_of_main,
        out = main,
        runner = runner,
        testonly = testonly,
    )
    _py_binary(
        name = name,
        srcs = [main],
        legacy_create_init = 0,
        main = main,
        deps = deps + ["//tools/build:" + runner],
        **kwargs
    )

def config_binary(name, deps = []):
    """Trains the config NAME.py of this package: tools/bazel run //configs:NAME

    Args:
      name: name of the config's file without .py.
      deps: the library of the config, and the models that it names.
    """
    py_binary(
        name = name,
        runner = "convoy_main",
        args_of_main = ["train", "--config=%s.%s" % (native.package_name().replace("/", "."), name)],
        deps = deps,
    )

def module_binary(name, deps = [], **kwargs):
    """Runs NAME.py of this package as a program: tools/bazel run //PACKAGE:NAME

    Args:
      name: name of the file without .py.
      deps: a library with the file in it, and what that imports.
      **kwargs: as for Bazel's py_binary.
    """
    py_binary(
        name = name,
        runner = "module_main",
        args_of_main = ["%s.%s" % (native.package_name().replace("/", "."), name)],
        deps = deps,
        **kwargs
    )

def py_test(name, srcs = None, deps = [], data = [], size = "small", **kwargs):
    """Runs pytest on the test files.

    Args:
      name: name of the target, and of its file without .py unless srcs is given.
      srcs: test files.
      deps: libraries that the tests import.
      data: files that the tests read, as paths from the top of the repository.
      size: small, medium, large or enormous; .bazelrc says how long each may take.
      **kwargs: as for Bazel's py_test: args, tags, shard_count, flaky, ...
    """
    srcs = srcs or [name + ".py"]
    main = "_" + name + "_main.py"
    _main_file(
        name = "_" + name + "_main",
        args_of_main = [native.package_name() + "/" + src for src in srcs],
        out = main,
        runner = "pytest_main",
        testonly = True,
    )
    _py_test(
        name = name,
        srcs = srcs + [main],
        data = data + ["//:pyproject.toml"],
        legacy_create_init = 0,
        main = main,
        size = size,
        deps = deps + [
            "//:conftest",
            "//tools/build:pytest_main",
        ],
        **kwargs
    )

def package_tests(deps = [], special = {}):
    """A target for each test file of this package, so that a new file needs no line here.

    Its other Python files (helpers, a conftest.py) and its data (golden texts) go to every test.

    Args:
      deps: libraries that the tests import.
      special: for a test file without .py, arguments of py_test that it needs beside
        the usual ones (size, tags, shard_count, deps, data).
    """
    tests = [f[:-len(".py")] for f in native.glob(["*_test.py"], allow_empty = True)]
    for name in special:
        if name not in tests:
            fail("%s.py, for which there are settings here, is not in this folder." % name)
    py_library(
        name = "support",
        testonly = True,
        srcs = native.glob(["*.py"], exclude = ["*_test.py"], allow_empty = True),
        data = native.glob(["**"], exclude = ["**/*.py", "**/*.pyc", "BUILD.bazel"], allow_empty = True),
        visibility = ["//tests:__subpackages__"],
        deps = deps,
    )

    # For the test that looks which files of the engine have a test.
    native.filegroup(
        name = "test_files",
        testonly = True,
        srcs = native.glob(["*_test.py"], allow_empty = True),
        visibility = ["//tests:__pkg__"],
    )
    for name in tests:
        settings = dict(special.get(name, {}))
        py_test(
            name = name,
            deps = deps + [":support"] + settings.pop("deps", []),
            **settings
        )
