"""The module extension that MODULE.bazel uses. Bazel before 6 cannot load this file."""

load(":environments.bzl", "environments")

def _python_env_impl(_module_ctx):
    environments(rules_python = True)

python_env = module_extension(implementation = _python_env_impl)
