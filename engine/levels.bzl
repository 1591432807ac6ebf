"""The levels of the architecture, the only list of them.

Bazel, the tests (tests/levels.py), and docs/images/architecture.py, which writes the table in docs/architecture.md and
its picture, read it. A package imports only packages on lower levels: packages of one level do not import each other.
"""

load("//tools/build:defs.bzl", "py_library")

# Group -> its levels, the lowest first; level -> its packages; package -> what it is responsible for.
GROUPS = {
    "base": [
        {
            "base": "errors, durations, files, text, tables for the terminal; imports no JAX",
        },
        {
            "config": "the typed schema, loading, overrides, validation, the hardware table; imports no JAX",
            "storage": "buckets, as mounted folders or as objects; storage that may hang",
        },
        {
            "cluster": "cluster detection, the process group, exit status, shutdown; imports no JAX",
        },
    ],
    "core": [
        {
            "metrics": "metrics: mergeable states, their reduction, ready-made ones, and their results",
            "parallel": "the mesh, sharding rules and their checks, device memory, absent hardware",
            "run": "one run directory: layout, lease, status, logs, ledgers",
        },
        {
            "data": "sources, samplers, streams, ragged examples, batches, worker processes, device feeds",
        },
        {
            "layers": "layers for model authors, the kernels of each platform; `layers/platforms/`: tuning for each",
        },
        {
            "training": "pure functions of pytrees: Task, loss, optimizer, train state, gradients, update, step",
        },
        {
            "checkpoint": "async save, store, integrity, retention, warm start, export",
            "compile": "compiled programs: lowering, keys, caches, memory, FLOPs, HLO",
            "observe": "metric files, progress, profiler, throughput, summary",
        },
    ],
    "loop": [
        {
            "loop": "the loop as a generator of boundaries, its events, evaluations, failures, slow processes",
        },
    ],
    "verbs": [
        {
            "api": "the verbs as functions: train, evaluate, predict, follow, export, explain, compile; saved runs",
            "launch": "starting and restarting processes: local, Slurm, Kubernetes, TPU VM",
        },
    ],
    "extensions": [
        {
            "diagnosis": "measures the layers of a model while it trains: `log.layers`",
            "driving": "metrics of detection and of forecasting",
            "experiments": "lists of runs, and comparisons of their results with intervals",
            "plot": "figures of driving scenes, for the `figure` method of a Task; curves of runs",
            "readers": "readers of file formats: sources with random access, streams, decoders of records",
            "scaffold": "writes a small project from templates",
        },
        {
            "datasets": "writes a source as ArrayRecord files and checks every example, in parallel processes",
            "joint": "several datasets with different labels in one run, in one step or in turn",
            "lineage": "trees of what was made from what, who saw a log, and model cards",
            "perception": "operations of perception models: sampling, scatter, boxes, targets, sparse convolution",
            "planning": "plans a run for hardware that may be absent: cost model, candidates, `plan.json`",
            "trackers": "passes metrics on to MLflow, W&B, Trackio, TensorBoard and CSV files",
        },
        {
            "augmentation": "random augmentations of driving scenes, keyed by the position of the example",
            "hub": "weights of other programs: safetensors files, tables of names",
            "ray": "Ray: training in actors on several nodes, pools of workers for data, jobs",
            "report": "reports of runs and of comparisons as HTML, one file each that needs no network",
            "sequences": "windows of the frames of drives, and rows that continue drives from step to step",
            "submissions": "writes predictions in the formats of public benchmarks",
        },
        {
            "adapters": "adapters of frozen kernels, chosen in the config: LoRA, DoRA, QLoRA; the files of PEFT",
            "optimizers": "optimizers that Optax lacks: Muon on every mesh, SOAP, Adam-mini, MARS; SAM for a Task",
            "quantization": "weights and activations in fewer bits, after training or in it; what each layer costs",
            "sweeps": "searches of settings with Optuna: trials are runs, on this machine or on a cluster",
            "tuning": "suggests a learning rate and a batch size from a short measurement, each with its curve",
        },
        {
            "bundles": "bundles of a trained model that run without the engine: StableHLO, ONNX, checks, latency",
        },
    ],
    "command line": [
        {
            "cli": "the command `convoy`: one module for each verb",
        },
    ],
}

LEVELS = [packages for levels in GROUPS.values() for packages in levels]

# Where the parts of the engine are tried and measured one by one.
OUTSIDE = [
    "//benchmarks:__subpackages__",
    "//tests:__subpackages__",
]

def _level_of(name):
    for level, packages in enumerate(LEVELS):
        if name in packages:
            return level
    fail("engine/%s is on no level: add it to GROUPS in engine/levels.bzl" % name)

def _targets(levels):
    return ["//engine/" + package for packages in levels for package in packages]

def everything():
    """Returns all packages."""
    return _targets(LEVELS)

def engine_package(data = [], visibility = []):
    """The library of all Python files of this folder and of folders in it without targets, named like the folder.

    It sees the packages on lower levels.

    Args:
      data: files that its code reads.
      visibility: who sees it in addition to the packages on higher levels.
    """
    name = native.package_name().split("/")[-1]
    level = _level_of(name)
    py_library(
        name = name,
        srcs = native.glob(["**/*.py"]),
        data = data,
        visibility = [target + ":__pkg__" for target in _targets(LEVELS[level + 1:])] +
                     ["//engine:__pkg__"] + OUTSIDE + visibility,
        deps = _targets(LEVELS[:level]) + [
            "//engine:init",
            "@pypi//:site_packages",
        ],
    )
