"""Small local repositories in place of rule repositories that Bazel would otherwise download.

With them WORKSPACE downloads nothing but Python packages.
"""

def _bzl(rules):
    """Returns the text of a .bzl file that exports rules which are built into Bazel."""
    return "".join(["{0} = native.{0}\n".format(rule) for rule in rules])

# Under Bazel 7 and later MODULE.bazel provides the real rules_python, so that
# tools/build/defs.bzl loads the Python rules from the same place under every version.
_RULES_PYTHON = {
    "python/BUILD.bazel": "",
    "python/defs.bzl": _bzl(["py_binary", "py_library", "py_test"]),
}

# Bazel 4's own packages load a few names from these three even when only Python is built.
# Later versions load them when a target needs them, and none does.
_BAZEL_4 = {
    "remote_coverage_tools": {
        "BUILD.bazel": """
package(default_visibility = ["//visibility:public"])

filegroup(name = "coverage_report_generator")

filegroup(name = "lcov_merger")
""",
    },
    "rules_cc": {
        "cc/BUILD.bazel": "",
        "cc/defs.bzl": _bzl(
            ["cc_" + kind for kind in ["binary", "import", "library", "test", "toolchain", "toolchain_suite"]],
        ),
    },
    "rules_java": {
        "java/BUILD.bazel": "",
        "java/defs.bzl": _bzl(["java_" + kind for kind in ["binary", "import", "library", "runtime", "toolchain"]]),
    },
}

def _fake_impl(rctx):
    rctx.file("WORKSPACE", "")
    for path, text in rctx.attr.files.items():
        rctx.file(path, text)

_fake = repository_rule(
    implementation = _fake_impl,
    attrs = {"files": attr.string_dict(mandatory = True)},
)

def fakes():
    """Defines the fakes that the running Bazel needs."""
    _fake(name = "rules_python", files = _RULES_PYTHON)

    # Debian's build of Bazel 4.2 reports no version.
    version = native.bazel_version
    if not version or version.startswith("4."):
        for name, files in _BAZEL_4.items():
            _fake(name = name, files = files)
