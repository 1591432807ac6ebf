"""What MODULE.bazel takes from here. Bazel before 6 cannot load this file."""

load(":python_env.bzl", _python_env = "python_env")

def _python_env_impl(_module_ctx):
    _python_env(
        name = "pypi",
        requirements = {
            Label("//:requirements.lock"): "newest",
            Label("//:requirements_min.lock"): "min",
        },
        rules_python = True,
    )
    _python_env(
        name = "lint_tools",
        requirements = {Label("//tools/build:lint.lock"): "newest"},
        rules_python = True,
    )

python_env = module_extension(implementation = _python_env_impl)
