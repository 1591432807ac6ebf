"""The floors of the house, for Bazel: a room sees the rooms below it and no others.

tests/layering_test.py holds the same for each import of each file.
"""

load("//tools/build:defs.bzl", "py_library")

# Floor 3 and up are the files of //engine itself, and the rooms of HIGH.
FLOORS = [
    [
        "//engine/cluster",
        "//engine/config",
    ],
    [
        "//engine:metrics",
        "//engine/data",
        "//engine/parallel",
        "//engine/run",
    ],
    [
        "//engine/checkpoint",
        "//engine/layers",
        "//engine/observe",
        "//engine/resilience",
        "//engine/training",
    ],
]

HIGH = [
    "//engine",
    "//engine/launch",
    "//engine/plan",
]

# Where the parts of the engine are tried and measured one by one.
OUTSIDE = [
    "//benchmarks:__subpackages__",
    "//tests:__subpackages__",
]

def below(floor):
    """Returns all rooms below a floor."""
    return [room for rooms in FLOORS[:floor] for room in rooms]

def above(floor):
    """Returns the visibility of a room on a floor."""
    rooms = [room for rooms in FLOORS[floor + 1:] for room in rooms] + HIGH
    return [room + ":__pkg__" for room in rooms if ":" not in room] + OUTSIDE

def room(floor, deps = [], visibility = []):
    """The library of all Python files of this folder, named like the folder.

    Args:
      floor: its floor, from 0.
      deps: what it sees beside the floors below.
      visibility: who sees it beside the floors above.
    """
    py_library(
        name = native.package_name().split("/")[-1],
        srcs = native.glob(["*.py"]),
        visibility = above(floor) + visibility,
        deps = below(floor) + deps + [
            "//engine:init",
            "@pypi//:site_packages",
        ],
    )
