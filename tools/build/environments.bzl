"""The repositories of Python packages: one for each extra of pyproject.toml that has a lock file in tools/locks."""

load(":python_env.bzl", "python_env")

def environments(rules_python = False):
    """Defines @pypi (the core), and above it one environment for each lock file of the list below, such as @pypi_test.

    Args:
      rules_python: whether the Python rules are those of rules_python, as under MODULE.bazel.
    """
    python_env(
        name = "pypi",
        requirements = {
            Label("//:requirements.lock"): "newest",
            Label("//:requirements_min.lock"): "min",
        },
        rules_python = rules_python,
    )
    for extra, base, included_in_base in [
        ("aot", "pypi", []),
        ("examples", "pypi", ["min"]),
        ("onnx", "pypi", []),
        ("test", "pypi_examples", ["min"]),
        ("sim", "pypi_examples", []),
        ("lint", "pypi", []),
        ("docs", "pypi", []),
    ]:
        python_env(
            name = "pypi_" + extra,
            base = "@{}//:packages.txt".format(base),
            included_in_base = included_in_base,
            requirements = {Label("//tools/locks:{}.lock".format(extra)): "newest"},
            rules_python = rules_python,
        )
