"""The Python rules of this project. BUILD files load them from here only."""

load("@rules_python//python:defs.bzl", _py_binary = "py_binary", _py_library = "py_library", _py_test = "py_test")

py_library = _py_library

# Settings of a test that starts processes: not in --config=fast. It waits half of its time for them, so others run
# beside it.
MULTIPROCESS = {
    "size": "medium",
    "tags": ["multiprocess"],
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

def config_binary(name, deps = [], **kwargs):
    """Trains the config NAME.py of this package: tools/bazel run //configs:NAME

    Args:
      name: name of the config's file without .py.
      deps: the library of the config, and the models that it names.
      **kwargs: as for Bazel's py_binary.
    """
    py_binary(
        name = name,
        runner = "convoy_main",
        args_of_main = ["train", "--config=%s.%s" % (native.package_name().replace("/", "."), name)],
        deps = deps,
        **kwargs
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

def py_test(name, srcs = None, tests = [], deps = [], data = [], size = "small", **kwargs):
    """Runs pytest on test files.

    Args:
      name: name of the target, and of its file without .py unless srcs or tests is given.
      srcs: test files that belong to this target alone.
      tests: further test files, by their names without .py, which package_tests() has made libraries of.
      deps: libraries that the tests import.
      data: files that the tests read, as paths from the top of the repository.
      size: small, medium, large or enormous; .bazelrc says how long each may take.
      **kwargs: as for Bazel's py_test: args, tags, shard_count, flaky, ...
    """
    if srcs == None:
        srcs = [] if tests else [name + ".py"]
    main = "_" + name + "_main.py"
    _main_file(
        name = "_" + name + "_main",
        args_of_main = [native.package_name() + "/" + src for src in srcs + [test + ".py" for test in tests]],
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
        deps = deps + [_library_of(test) for test in tests] + [
            "//:conftest",
            "//tools/build:pytest_main",
        ],
        **kwargs
    )

def _library_of(test):
    return "_" + test + "_file"

# The targets of package_tests() that run many files, and the settings that those files have in common.
_GROUPS = {
    "small_tests": {},
    "multiprocess_tests": MULTIPROCESS,
}

def package_tests(deps = [], special = {}, shards = {}):
    """Targets for the test files of this package, so that a new file needs no line here.

    Test files with the same settings share one target, since every target starts Python, JAX and pytest again:
    `small_tests` and `multiprocess_tests`. A file with other settings has its own target. For development, each file
    of a shared target also has a target named like the file, which `//...` leaves out.

    The package's other Python files (helpers, a conftest.py) and its data (golden texts) belong to every test.

    Args:
      deps: libraries that the tests import.
      special: for a test file without .py, the arguments of py_test that it needs in addition to
        the usual ones (size, tags, shard_count, deps, data).
      shards: for a shared target, the number of processes that it is split into.
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

    # Read by tests/layering_test.py, which compares the files of the engine with those of the tests.
    native.filegroup(
        name = "test_files",
        testonly = True,
        srcs = native.glob(["*_test.py"], allow_empty = True),
        visibility = ["//tests:__pkg__"],
    )

    groups = {group: [] for group in _GROUPS}
    for name in tests:
        # A library, since a source file in two targets of a package breaks the precompiling of rules_python.
        py_library(name = _library_of(name), testonly = True, srcs = [name + ".py"])
        settings = dict(special.get(name, {}))
        own_deps, own_data = settings.pop("deps", []), settings.pop("data", [])
        group = [group for group in _GROUPS if _GROUPS[group] == settings]
        if group:
            groups[group[0]].append((name, own_deps, own_data))
            settings["tags"] = settings.get("tags", []) + ["manual"]
        py_test(name = name, tests = [name], data = own_data, deps = deps + [":support"] + own_deps, **settings)

    for group in groups:
        members = groups[group]
        if members:
            settings = dict(_GROUPS[group])
            if group in shards:
                settings["shard_count"] = shards[group]
            py_test(
                name = group,
                data = _union([own_data for _, _, own_data in members]),
                tests = [name for name, _, _ in members],
                deps = _union([deps, [":support"]] + [own_deps for _, own_deps, _ in members]),
                **settings
            )
        elif group in shards:
            fail("shards: this folder has no test file for %s." % group)

def _union(lists):
    return {item: None for items in lists for item in items}.keys()
