"""Programs in a folder: which are loaded, and what a warning says about the others."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.base.errors import ConfigError
from engine.compile.program_store import StoredPrograms, first_problem
from tests import damages

CONFIG = "name: a\ntrain.seed: 0\ntrain.global_batch_size: 16\n"


def mesh(*order):
    return Mesh(np.array(jax.devices())[list(order or (0, 1))], "x")


def lowered(mesh, factor=2.0):
    x = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("x")))
    return jax.jit(lambda x: {"y": x * factor, "sum": x.sum()}).lower(x)


@pytest.fixture
def folder(tmp_path):
    StoredPrograms(tmp_path / "programs", store=True, config=CONFIG).compile("step", lowered(mesh()), mesh())
    return tmp_path / "programs"


def load(folder, name="step", on=None, factor=2.0, config=CONFIG):
    """Returns whether the program was loaded, and the warnings; checks its result in any case."""
    said, on = [], on or mesh()
    compiler = StoredPrograms(folder, config=config, say=said.append)
    compiled = compiler.compile(name, lowered(on, factor), on)
    x = jax.device_put(jnp.arange(8.0), NamedSharding(on, PartitionSpec("x")))
    result = compiled(x)
    assert result["y"].tolist() == [factor * i for i in range(8)] and result["sum"] == 28
    return compiler.loaded == [name], said


def file_of(folder, suffix):
    return next(folder.glob(f"step-*{suffix}"))


def test_stored_program_is_loaded(folder):
    assert load(folder) == (True, [])


def test_program_that_jax_has_in_its_cache_can_be_stored_and_loaded(folder, tmp_path):
    jax.clear_caches()
    lowered(mesh()).compile()  # the tests have a cache of compiled programs
    jax.clear_caches()
    again = tmp_path / "again"
    StoredPrograms(again, store=True, config=CONFIG).compile("step", lowered(mesh()), mesh())
    assert load(again) == (True, [])
    assert jax.config.jax_enable_compilation_cache


@pytest.mark.parametrize("suffix", [".program", ".json"])
@pytest.mark.parametrize("damage", damages.ALL)
def test_damaged_file_is_named_and_its_program_compiled(damage, suffix, folder):
    path = file_of(folder, suffix)
    damage(path)
    loaded, [text] = load(folder)
    assert not loaded and path.stem in text
    StoredPrograms(folder, store=True, config=CONFIG).compile("step", lowered(mesh()), mesh())
    assert load(folder) == (True, [])


def test_swapped_programs_are_not_loaded(folder):
    one = file_of(folder, ".program")
    StoredPrograms(folder, store=True, config=CONFIG).compile("step", lowered(mesh(), 3.0), mesh())
    [two] = set(folder.glob("*.program")) - {one}
    damages.swap(one, two)
    assert not load(folder)[0]
    damages.swap(one.with_suffix(".json"), two.with_suffix(".json"))
    assert not load(folder)[0]


def test_another_program_is_compiled_and_the_changed_settings_are_named(folder):
    loaded, [text] = load(folder, factor=3.0, config=CONFIG.replace("seed: 0", "seed: 1").replace("name: a", "name: b"))
    assert not loaded
    assert text.startswith("warning: program 'step' is compiled now, since ")
    assert text.endswith("has it for train.seed 0 (here 1). To renew the folder, run convoy compile again.")
    assert "another program of the same config" in load(folder, factor=3.0)[1][0]


@pytest.mark.parametrize(("read", "names"), [("b", "ab"), ("c", "abc"), ("a", "ac")])
def test_program_that_reads_another_argument_is_not_loaded(read, names, tmp_path):
    """JAX drops unused arguments, so their programs have the same StableHLO."""

    def compiled(read, names, **settings):
        fields = {name: jax.ShapeDtypeStruct((8,), jnp.float32) for name in names}
        programs = StoredPrograms(tmp_path, **settings)
        found = programs.compile("step", jax.jit(lambda batch: batch[read] + 1).lower(fields), mesh(0))
        return found, programs.loaded

    compiled("a", "ab", store=True)
    found, loaded = compiled(read, names)
    result = found({name: np.full(8, ord(name), np.float32) for name in names})
    assert result[0] == ord(read) + 1 and not loaded


def test_other_devices_are_compiled_for(folder):
    assert "order of devices" in load(folder, on=mesh(1, 0))[1][0]
    assert "devices 2 x cpu in 1 process (here 4 x cpu in 1 process)" in load(folder, on=mesh(0, 1, 2, 3))[1][0]


def test_program_of_other_versions_is_not_loaded(folder):
    path = file_of(folder, ".json")
    entry = json.loads(path.read_text())
    entry["facts"]["jaxlib"] = "0.1.2"
    path.write_text(json.dumps(entry))
    loaded, [text] = load(folder)
    assert not loaded and "has it for jaxlib 0.1.2 (here " in text


def test_missing_program_is_named_with_those_that_exist(folder):
    loaded, [text] = load(folder, name="evaluation heldout")
    assert not loaded and f"program 'evaluation heldout' is compiled now, since {folder} holds step." in text


def test_damaged_program_is_compiled(folder):
    path = file_of(folder, ".program")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    loaded, [text] = load(folder)
    assert not loaded and "is damaged" in text


def test_program_that_cannot_be_loaded_is_compiled(folder):
    file_of(folder, ".program").write_bytes(b"no program")
    path = file_of(folder, ".json")
    entry = json.loads(path.read_text())
    path.write_text(json.dumps({**entry, "sha256": hashlib.sha256(b"no program").hexdigest()}))
    loaded, [text] = load(folder)
    assert not loaded and "cannot be loaded (UnpicklingError" in text


def test_all_processes_compile_if_one_has_no_program():
    assert first_problem({0: "", 1: "", 2: ""}, []) == ""
    assert first_problem({0: "", 1: "", 2: "DIR holds no program"}, []) == "on process 2 DIR holds no program"
    assert first_problem({0: "DIR holds b", 1: "DIR holds no program"}, []) == "DIR holds b"
    assert first_problem({0: ""}, [1]) == "process 1 has not loaded it within 300 s"


def test_options_of_xla_belong_to_a_program(folder, monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_option=1 --xla_dump_to=/tmp/x")
    loaded, [text] = load(folder)
    assert not loaded and "options " in text and "(here --xla_tpu_option=1)" in text.replace("--xla_force", "")


def test_compiler_options_of_a_step_belong_to_its_program(folder):
    said = []
    compiler, options = StoredPrograms(folder, config=CONFIG, say=said.append), {"xla_tpu_option": True}
    compiler.compile("step", lowered(mesh()), mesh(), options)
    assert compiler.loaded == []
    assert "options " in said[0] and "xla_tpu_option=True)" in said[0]


def test_settings_of_jax_that_the_compiler_gets_belong_to_a_program(folder):
    for name, value in (("jax_optimization_level", "O1"), ("jax_compiler_enable_remat_pass", False)):
        before = jax.config.values[name]
        jax.config.update(name, value)
        try:
            loaded, [text] = load(folder)
        finally:
            jax.config.update(name, before)
        assert not loaded and "settings " in text and f"{name}={value}" in text
    assert load(folder) == (True, [])


def test_folder_that_others_may_write_to_is_refused(folder):
    folder.chmod(0o770)
    for store in (False, True):
        with pytest.raises(ConfigError, match=r"users other than its owner may write to it \(mode 770\).* chmod go-w"):
            StoredPrograms(folder, store=store)


def test_file_that_others_may_write_to_is_not_loaded(folder):
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
    file_of(folder, ".program").chmod(0o666)
    loaded, [text] = load(folder)
    assert not loaded and "users other than its owner may write to it (mode 666)" in text


def test_program_that_calls_python_is_left_to_the_job(tmp_path):
    def call(x):
        jax.debug.callback(lambda x: None, x)
        return {"y": x * 2.0, "sum": x.sum()}

    said, x = [], jax.ShapeDtypeStruct((8,), jnp.float32)
    compiler = StoredPrograms(tmp_path / "programs", store=True, say=said.append)
    compiler.compile("step", jax.jit(call).lower(x), mesh(0))
    [text] = said
    assert text.startswith("warning: program 'step' is not stored, so the job compiles it: ")
    assert not (tmp_path / "programs").exists()


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"cache.programs: .*absent is not a folder. convoy compile --out=.* makes"):
        StoredPrograms(tmp_path / "absent")
