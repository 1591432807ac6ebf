"""The settings that all tests share (conftest.py)."""

import os
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]


def test_exit_in_the_middle_of_the_tests_is_a_failure(tmp_path):
    (tmp_path / "exit_test.py").write_text("import os\ndef test_exit(): os._exit(0)\ndef test_later(): pass\n")
    words = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "exit_test.py"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(TOP), *sys.path])}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 3, done.stdout
    assert "A test called os._exit in the process of the tests." in done.stderr
