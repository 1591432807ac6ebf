"""Stand-ins for rule repositories that are otherwise downloaded.

With them WORKSPACE needs nothing from the web but Python packages.
"""

# Under Bazel 7 and later MODULE.bazel brings the real rules_python, so that
# tools/build/defs.bzl loads the Python rules from one place under every version.
_RULES_PYTHON = {
    "python/BUILD.bazel": "",
    "python/defs.bzl": """
py_binary = native.py_binary
py_library = native.py_library
py_test = native.py_test
""",
}

# Bazel 4's own packages load a few names from these three even when only Python
# is built. Later versions load them when they are needed, which is never here.
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
        "cc/defs.bzl": """
cc_binary = native.cc_binary
cc_import = native.cc_import
cc_library = native.cc_library
cc_test = native.cc_test
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
""",
    },
    "rules_java": {
        "java/BUILD.bazel": "",
        "java/defs.bzl": """
java_binary = native.java_binary
java_import = native.java_import
java_library = native.java_library
java_runtime = native.java_runtime
java_toolchain = native.java_toolchain
""",
    },
}

def _stand_in_impl(rctx):
    rctx.file("WORKSPACE", "")
    for path, text in rctx.attr.files.items():
        rctx.file(path, text)

_stand_in = repository_rule(
    implementation = _stand_in_impl,
    attrs = {"files": attr.string_dict(mandatory = True)},
)

def fakes():
    """Defines the stand-ins that the running Bazel needs."""
    _stand_in(name = "rules_python", files = _RULES_PYTHON)

    # Debian's build of Bazel 4.2 gives no version.
    version = native.bazel_version
    if not version or version.startswith("4."):
        for name, files in _BAZEL_4.items():
            _stand_in(name = name, files = files)
