#!/usr/bin/env bash
# Fails if a test file belongs to no test target that `bazel test //...` runs, and if a
# file looks like a test but is not named like one.
set -euo pipefail
cd "$(dirname "$0")/.."
# Tests are the sources of a target that `//...` runs, or of a library that such a target names itself.
in_targets=$(tools/bazel query --noshow_progress 'let tests = tests(//...) except attr(tags, "\bmanual\b", tests(//...)) in
  kind("source file", labels(srcs, $tests + labels(deps, $tests)))' |
  sed -e 's|^//:||' -e 's|^//||' -e 's|:|/|' | sort)
test_files=$(find . -name '.?*' -prune -o -path './bazel-*' -prune -o -name '*_test.py' -print | sed 's|^\./||' | sort)
missing=$(comm -23 <(echo "$test_files") <(echo "$in_targets"))
if [[ -n "$missing" ]]; then
  printf 'No test target of //... has these files. A BUILD.bazel with package_tests() next to them makes one:\n%s\n' \
    "$missing" >&2
  exit 1
fi
misnamed=$(find tests -name 'test_*.py' | sort)
if [[ -n "$misnamed" ]]; then
  printf 'Tests are named X_test.py; these are not, and would not run:\n%s\n' "$misnamed" >&2
  exit 1
fi
