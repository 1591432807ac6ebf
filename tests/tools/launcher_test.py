"""tools/bazel: finds a Bazel other than itself, and installs one only if that is allowed."""

import os
import pathlib
import shutil
import subprocess

import pytest

LAUNCHER = pathlib.Path("tools/bazel").resolve()


@pytest.fixture
def checkout(tmp_path):
    """A folder with the launcher, in which something was built before."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "bazel-bin").mkdir()
    shutil.copy(LAUNCHER, tmp_path / "tools/bazel")
    return tmp_path


def program(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def launch(checkout, *args, path=(), **env):
    """Runs tools/bazel; PATH has the folders of `path`, then the few commands that the launcher needs."""
    basics = checkout / "basics"
    basics.mkdir(exist_ok=True)
    for name in ("bash", "dirname", "env", "ls", "readlink", "sh"):
        if not (basics / name).exists():
            (basics / name).symlink_to(shutil.which(name))
    return subprocess.run(
        [checkout / "tools/bazel", *args],
        env={
            "PATH": os.pathsep.join(map(str, [*path, basics])),
            "HOME": str(checkout / "home"),
            "CONVOY_NO_INSTALL": "1",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_launcher_prefers_bazelisk_to_bazel(checkout):
    program(checkout / "bin/bazel", "echo bazel $@")
    program(checkout / "bin/bazelisk", "echo bazelisk $@")
    assert launch(checkout, "test", "//...", path=[checkout / "bin"]).stdout == "bazelisk test //...\n"


def test_launcher_uses_bazel_without_bazelisk(checkout):
    program(checkout / "bin/bazel", "echo bazel $@")
    assert launch(checkout, "version", path=[checkout / "bin"]).stdout == "bazel version\n"


def test_launcher_uses_the_bazelisk_that_it_installed_before(checkout):
    program(checkout / "home/.local/share/convoy/bazelisk/bin/bazelisk", "echo own $@")
    assert launch(checkout, "version").stdout == "own version\n"


def test_launcher_called_by_another_launcher_starts_its_bazel(checkout):
    real = program(checkout / "real", "echo real $@")
    program(checkout / "bin/bazel", f'BAZEL_REAL={real} exec {checkout}/tools/bazel "$@"')
    assert launch(checkout, "version", path=[checkout / "bin"]).stdout == "real version\n"


def test_launcher_does_not_find_itself(checkout):
    (checkout / "bin").mkdir()
    (checkout / "bin/bazel").symlink_to(checkout / "tools/bazel")
    result = launch(checkout, "version", path=[checkout / "bin", checkout / "tools"])
    assert result.returncode == 1
    assert "Bazel is not installed" in result.stderr


def test_launcher_installs_nothing_if_that_is_forbidden(checkout):
    for name in ("apt-get", "npm", "sudo"):
        program(checkout / "bin" / name, f"touch {checkout}/called")
    result = launch(checkout, "version", path=[checkout / "bin"])
    assert result.returncode == 1
    assert "CONVOY_NO_INSTALL" in result.stderr
    assert "apt-get install bazel-bootstrap" in result.stderr
    assert not (checkout / "called").exists()


def test_launcher_announces_and_installs_bazelisk_with_npm_if_apt_is_not_allowed(checkout):
    user_folder = checkout / "home/.local/share/convoy/bazelisk"
    npm = f"mkdir -p {user_folder}/bin; printf '#!/bin/sh\\necho installed $@' > {user_folder}/bin/bazelisk; "
    program(checkout / "bin/npm", f'PATH=/usr/bin:/bin; echo "$@" > {checkout}/npm; {npm} chmod +x {user_folder}/bin/*')
    result = launch(checkout, "version", path=[checkout / "bin"], CONVOY_NO_INSTALL="0")
    assert result.stdout == "installed version\n"
    assert f"Installing Bazelisk by npm into {user_folder}" in result.stderr
    assert (checkout / "npm").read_text().split()[-1] == "@bazel/bazelisk"


def test_launcher_names_the_manual_installation_without_apt_and_npm(checkout):
    result = launch(checkout, "version", CONVOY_NO_INSTALL="0")
    assert result.returncode == 1
    assert "neither apt-get nor npm" in result.stderr


def test_python_without_venv_is_reported_before_anything_is_built(checkout):
    (checkout / "bazel-bin").rmdir()
    program(checkout / "bin/bazel", "echo bazel $@")
    program(checkout / "bin/python3", 'case "$2" in *ensurepip*) exit 1;; esac; echo 3.13')
    program(checkout / "bin/apt-get", f"touch {checkout}/called")
    program(checkout / "bin/sudo", "exit 0")
    result = launch(checkout, "version", path=[checkout / "bin"])
    assert result.returncode == 1
    assert "Run: apt-get install python3.13-venv" in result.stderr
    assert not (checkout / "called").exists()


def test_python_without_venv_gets_the_package_if_apt_is_allowed(checkout):
    (checkout / "bazel-bin").rmdir()
    program(checkout / "bin/bazel", "echo bazel $@")
    program(checkout / "bin/python3", 'case "$2" in *ensurepip*) exit 1;; esac; echo 3.13')
    program(checkout / "bin/apt-get", f'echo "$@" >> {checkout}/called')
    program(checkout / "bin/sudo", '[ "$1" = -n ] && shift; exec "$@"')
    result = launch(checkout, "version", path=[checkout / "bin"], CONVOY_NO_INSTALL="0")
    assert result.stdout == "bazel version\n"
    assert "Installing Debian's python3.13-venv" in result.stderr
    assert "install -qq -y --no-install-recommends python3.13-venv" in (checkout / "called").read_text()
