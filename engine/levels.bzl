"""The levels of the architecture, for Bazel: a package sees the packages below it and no others.

tests/layering_test.py holds the same for each import of each file.
"""

load("//tools/build:defs.bzl", "py_library")

# Level 4 and up are the files of //engine itself, and the packages of HIGH.
LEVELS = [
    [
        "//engine/cluster",
        "//engine/config",
        "//engine:mounts",
    ],
    [
        "//engine/metrics",
        "//engine/data",
        "//engine/parallel",
        "//engine/readers",
        "//engine/run",
        "//engine/tuning",
    ],
    [
        "//engine/checkpoint",
        "//engine/layers",
        "//engine/observe",
        "//engine/resilience",
        "//engine/stragglers",
        "//engine/training",
    ],
    [
        "//engine/datasets",
        "//engine/loop",
        "//engine/planning",
        "//engine/saved",
    ],
]

HIGH = [
    "//engine",
    "//engine/launch",
]

# Where the parts of the engine are tried and measured one by one.
OUTSIDE = [
    "//benchmarks:__subpackages__",
    "//tests:__subpackages__",
]

def below(level):
    """Returns all packages below a level."""
    return [package for packages in LEVELS[:level] for package in packages]

def above(level):
    """Returns the visibility of a package on a level."""
    packages = [package for packages in LEVELS[level + 1:] for package in packages] + HIGH
    return [package + ":__pkg__" for package in packages if ":" not in package] + OUTSIDE

def engine_package(level, deps = [], visibility = []):
    """The library of all Python files of this folder and of folders in it without targets, named like the folder.

    Args:
      level: its level, from 0.
      deps: what it sees in addition to the levels below.
      visibility: who sees it in addition to the levels above.
    """
    py_library(
        name = native.package_name().split("/")[-1],
        srcs = native.glob(["**/*.py"]),
        visibility = above(level) + visibility,
        deps = below(level) + deps + [
            "//engine:init",
            "@pypi//:site_packages",
        ],
    )
