"""The compilation cache in real processes, since JAX supports one cache per process."""

import os
import pathlib
import platform
import subprocess
import sys
import textwrap
from typing import ClassVar

import pytest
from etils import epath

from engine.compile.cache import SCHEME, CheckedPath, cpu_features, key
from tests import damages

PROGRAM = """
    import sys
    import jax
    from engine.compile import cache
    events = []
    jax.monitoring.register_event_listener(lambda name, **more: events.append(name))
    {before}
    print(cache.enable(float(sys.argv[1])))
    for width in map(int, sys.argv[2:]):
        def layer(x):
            return jax.numpy.tanh(x @ x.T).sum()
        jax.jit(jax.grad(layer))(jax.numpy.ones((width, width)))
    hits = events.count("/jax/compilation_cache/cache_hits")
    print("hits" if hits else "no hits", "misses" if "/jax/compilation_cache/cache_misses" in events else "no misses")
"""


def start(home, *arguments, before="", **environment) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMP")} | environment
    environment = {"XDG_CACHE_HOME": str(home)} | environment
    program = textwrap.dedent(PROGRAM.format(before=before))
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(home, *arguments, **more) -> list[str]:
    process = start(home, *arguments, **more)
    output, errors = process.communicate(timeout=180)
    assert (process.returncode, errors) == (0, "")
    return output.splitlines()


def test_second_process_compiles_nothing(tmp_path):
    folder = str(tmp_path / "convoy" / "compiled" / key())
    assert run(tmp_path, 1.0, 8) == [folder, "no hits misses"]
    assert run(tmp_path, 1.0, 8) == [folder, "hits no misses"]


def test_cache_can_be_enabled_after_the_first_compilation(tmp_path):
    before = "jax.jit(lambda x: x + 1)(1)"
    run(tmp_path, 1.0, 8, before=before)
    assert run(tmp_path, 1.0, 8, before=before)[1] == "hits no misses"


def test_without_xdg_the_home_directory_is_used(tmp_path):
    assert run("", 1.0, HOME=str(tmp_path))[0] == str(tmp_path / ".cache" / "convoy" / "compiled" / key())


def test_cache_folder_is_private_to_the_user(tmp_path):
    run(tmp_path, 1.0)
    assert (tmp_path / "convoy" / "compiled" / key()).stat().st_mode & 0o077 == 0


def test_folder_set_for_jax_wins_and_keeps_small_programs(tmp_path):
    own = str(tmp_path / "own")
    assert run(tmp_path, 1.0, 8, JAX_COMPILATION_CACHE_DIR=own)[0] == own
    assert run(tmp_path, 1.0, 8, JAX_COMPILATION_CACHE_DIR=own)[1] == "hits no misses"
    assert os.listdir(tmp_path) == ["own"]


def test_disabled_cache_stays_disabled(tmp_path):
    assert run(tmp_path, 1.0, 8, JAX_ENABLE_COMPILATION_CACHE="false") == ["None", "no hits no misses"]
    assert os.listdir(tmp_path) == []


def test_unwritable_home_gives_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    process = start(tmp_path / "file", 1.0, 8)
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0 and output.splitlines() == ["None", "no hits no misses"]
    assert "cannot be written (Not a directory), so every start compiles again. Set XDG_CACHE_HOME" in errors


@pytest.mark.slow
def test_damaged_programs_are_named_once_and_compiled_again(tmp_path):
    """JAX hung at the pipe, and trained with flipped bits that its compression let pass."""
    folder = tmp_path / "convoy" / "compiled" / key()
    run(tmp_path, 1.0, *range(2, 6))
    programs = sorted(folder.glob("jit_layer-*.checked"))
    assert len(programs) == 4
    for program, damage in zip(
        programs, (damages.flipped_bit, damages.pipe, damages.folder, damages.empty), strict=True
    ):
        damage(program)
    process = start(tmp_path, 1.0, *range(2, 6))
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0 and output.splitlines()[1] == "hits misses"
    lines = errors.splitlines()
    assert len(lines) == 4 and all(line.startswith(f"warning: {folder}/jit_layer-") for line in lines)
    assert len(list(folder.glob("jit_layer-*.damaged"))) == 4
    assert run(tmp_path, 1.0, *range(2, 6))[1] == "hits no misses"


@pytest.mark.parametrize("damage", damages.ALL)
def test_jax_reads_no_damaged_program(damage, tmp_path, capsys):
    CheckedPath(f"{SCHEME}{tmp_path}/a").write_bytes(b"program")
    path = CheckedPath(f"{SCHEME}{tmp_path}/a")
    assert path.exists() and path.read_bytes() == b"program"
    damage(tmp_path / "a")
    path = CheckedPath(f"{SCHEME}{tmp_path}/a")
    assert not path.exists() and not path.exists()
    with pytest.raises(FileNotFoundError):
        path.read_bytes()
    assert capsys.readouterr().err.count(f"warning: {tmp_path}/a: damaged program in the compilation cache") == 1
    path.write_bytes(b"program")
    assert path.exists()


def test_swapped_programs_are_not_read(tmp_path, capsys):
    for name in "ab":
        CheckedPath(f"{SCHEME}{tmp_path}/{name}").write_bytes(name.encode())
    damages.swap(tmp_path / "a", tmp_path / "b")
    assert not any(CheckedPath(f"{SCHEME}{tmp_path}/{name}").exists() for name in "ab")


def test_unwritable_folder_is_named_once(tmp_path, capsys):
    for name in "ab":
        CheckedPath(f"{SCHEME}{tmp_path}/absent/{name}").write_bytes(b"program")
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/absent: cannot be written (No such file or directory), so the next start compiles again. "
        "Set JAX_COMPILATION_CACHE_DIR to a writable folder.\n"
    )


class Remote(pathlib.PurePosixPath):
    """A path in a bucket, as etils.epath has them for gs:// and s3:// with further packages."""

    content: ClassVar[dict[str, bytes]] = {}

    def __fspath__(self):
        return str(self).replace("bucket:/", "bucket://")

    def read_bytes(self):
        if self.name not in self.content:
            raise FileNotFoundError(self.name)
        return self.content[self.name]

    def write_bytes(self, content):
        self.content[self.name] = content

    def rename(self, target):
        self.content[os.path.basename(target)] = self.content.pop(self.name)


def test_programs_in_a_bucket_are_compared_too(capsys):
    epath.register_path_cls("bucket://")(Remote)
    folder = CheckedPath(f"{SCHEME}bucket://name/programs")
    assert not (folder / "a").exists()
    (folder / "a").write_bytes(b"program")
    assert (folder / "a").exists() and (folder / "a").read_bytes() == b"program"
    Remote.content["b.checked"] = Remote.content["a.checked"]
    assert not (folder / "b").exists()
    assert sorted(Remote.content)[0] == "a.checked" and sorted(Remote.content)[1].endswith(".damaged")
    assert capsys.readouterr().err.startswith("warning: bucket:/name/programs/b.checked: damaged program in the")


def test_folder_set_for_jax_is_limited_as_jax_would(tmp_path):
    limit = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_COMPILATION_CACHE_MAX_SIZE": "20000"}
    run(tmp_path, 1.0, *range(2, 6), **limit)
    assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20000


@pytest.mark.multiprocess
def test_concurrent_runs_share_a_cache_within_its_size_limit(tmp_path):
    """Both processes write, read and evict the same programs."""
    size = 32 * 1024
    widths = range(2, 14)
    processes = [start(tmp_path, size / 2**30, *order) for order in (widths, reversed(widths))]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, "")
    files = list((tmp_path / "convoy" / "compiled" / key()).iterdir())
    assert len(files) > 3 and {path.suffix for path in files} == {".checked"}
    assert sum(path.stat().st_size for path in files) <= size


def test_key_contains_machine_and_jax_version():
    import jax

    assert key() == key()
    assert key().startswith(f"{platform.machine()}-") and f"jax{jax.__version__}-" in key()


def test_cpu_features_are_sorted(tmp_path):
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nflags\t\t: sse avx512f avx\n\nprocessor\t: 1\nflags\t\t: other\n")
    arm.write_text("processor\t: 0\nFeatures\t: fp asimd sve\n")
    assert cpu_features(x86) == ["avx", "avx512f", "sse"]
    assert cpu_features(arm) == ["asimd", "fp", "sve"]
    assert cpu_features(tmp_path / "absent") == [platform.processor()]
