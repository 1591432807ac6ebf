"""A store saves without blocking the loop, lists only complete steps, and restores exactly what was saved."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from engine.base.errors import CheckpointError
from engine.checkpoint.integrity import DamagedCheckpoint, list_set_aside
from engine.checkpoint.manifest import MANIFEST, UnsupportedFormat, read_lock, read_manifest, write_manifest
from engine.checkpoint.policy import Retention
from engine.checkpoint.store import CheckpointStore, NoUsableCheckpoint
from engine.cluster.exit_status import ExitStatus
from tests.checkpoint.saves import CONFIG, POSITION, Saves


def sharding(devices: int, *axes: str) -> NamedSharding:
    mesh = jax.make_mesh((devices,), ("axis",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    return NamedSharding(mesh, PartitionSpec(*axes))


def make_state(width: int = 16, devices: int = 1, *axes: str):
    """A train state: flat paths, a bfloat16, optax's nested tuples, an empty dict."""
    params = {
        "encoder/0/kernel": jax.random.normal(jax.random.key(1), (8, width)),
        "encoder/0/bias": jnp.zeros((width,), jnp.bfloat16),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    state = {
        "step": jnp.int32(3),
        "rng": jax.random.key_data(jax.random.key(0)),
        "params": params,
        "carried": {},
        "opt_state": tx.init(params),
    }
    big = sharding(devices, *axes)
    small = sharding(devices)
    return jax.tree.map(lambda x: jax.device_put(x, big if x.ndim == 2 else small), state)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def store(tmp_path):
    store = Saves(tmp_path / "checkpoints")
    yield store
    store.close()


def test_restore_returns_state_position_and_config_as_saved(store):
    state = make_state()
    assert store.save(3, state)
    store.wait()
    restored = store.restore(3, abstract(state))
    assert_same(restored, state)
    assert type(restored["opt_state"][1][0]) is type(state["opt_state"][1][0])
    assert store.position(3) == POSITION
    assert store.config_text(3) == CONFIG


@pytest.mark.parametrize("devices", [1, 8])
def test_state_may_be_donated_right_after_save(store, devices):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + x.dtype.type(1), state), donate_argnums=0)
    state = {"params": {f"p{i}": jnp.zeros((256, 1024)) for i in range(8)}}
    state = jax.device_put(state, sharding(devices, "axis"))
    want = abstract(state)
    store.save(0, state)
    for _ in range(20):
        state = step(state)
    jax.block_until_ready(state)
    store.wait()
    saved = store.restore(0, want)
    assert all(not np.asarray(x).any() for x in jax.tree.leaves(saved))
    assert all((np.asarray(x) == 20).all() for x in jax.tree.leaves(state))
    assert_same(step(saved), {"params": {f"p{i}": jnp.ones((256, 1024)) for i in range(8)}})


def test_train_step_after_a_save_updates_the_state_in_place(store):
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = step({f"p{i}": jnp.zeros((256, 1024)) for i in range(8)})
    addresses = {name: x.unsafe_buffer_pointer() for name, x in state.items()}
    store.save(0, state)
    assert {name: x.unsafe_buffer_pointer() for name, x in step(state).items()} == addresses


def test_restore_onto_another_mesh_is_bitwise_equal(store):
    data = make_state(devices=8)
    fsdp = make_state(16, 8, "axis")
    one = make_state()
    store.save(1, data)
    store.wait()
    restored = store.restore(1, abstract(fsdp))
    assert_same(restored, data)
    assert restored["params"]["encoder/0/kernel"].sharding.spec == PartitionSpec("axis")
    store.save(2, restored)
    store.wait()
    restored = store.restore(2, abstract(one))
    assert_same(restored, data)
    assert restored["params"]["encoder/0/kernel"].devices() == {jax.devices()[0]}


def folded(shape, *axes: str | None):
    """Returns a state with a stack of eight layers: parameters, optimizer state and EMA."""
    mesh = jax.make_mesh((2, 4), ("pipeline", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    w = jnp.arange(8 * 4 * 6, dtype=jnp.float32).reshape(*shape, 4, 6)
    w = jax.device_put(w, NamedSharding(mesh, PartitionSpec(*axes, "fsdp")))
    params = {"decoder/layers/w": w, "head": jnp.ones((8, 3))}
    opt_state = jax.tree.map(lambda x: x + 1, optax.adam(1.0).init(params))
    return {"params": params, "opt_state": opt_state, "ema": {"decoder/layers/w": w * 2}}


def test_stack_of_layers_restores_with_another_number_of_repeats(store):
    plain, two, four = folded((8,), "pipeline"), folded((2, 4), None, "pipeline"), folded((4, 2), None, "pipeline")
    for step, (saved, wanted, dimensions) in enumerate([(plain, two, 2), (two, plain, 1), (two, four, 2)]):
        store.save(step, saved)
        store.wait()
        found = store.restore(step, abstract(wanted), {"decoder/layers/w": dimensions})
        assert_same(found, wanted)
        assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, wanted)
        with pytest.raises(CheckpointError, match="is not a checkpoint of this model"):
            store.restore(step, abstract(wanted))
    other = {**two, "params": {**two["params"], "head": jnp.ones((2, 4, 3))}}
    with pytest.raises(CheckpointError, match=r"params/head: checkpoint \(8, 3\).*\n1 of 8 leaves differ"):
        store.restore(0, abstract(other), {"decoder/layers/w": 2})


def test_step_is_listed_once_it_is_durable(store):
    state = make_state()
    assert store.steps() == [] and store.latest() is None
    store.save(9, state)
    store.save(10, state)
    assert 10 not in store.steps() or not list(store.directory.glob("10.*"))
    store.wait()
    (store.directory / "11").mkdir()  # such as an unfinished copy
    assert store.steps() == [9, 10] and store.latest() == 10


def test_saving_a_restored_step_writes_nothing(tmp_path):
    state = make_state()
    with_store(tmp_path, lambda store: store.save(5, state))
    marker = tmp_path / "5" / "commit_success.txt"
    before = marker.stat().st_mtime_ns

    def resume(store):
        store.restore(5, abstract(state))
        assert not store.save(5, state)

    with_store(tmp_path, resume)
    assert marker.stat().st_mtime_ns == before


def test_later_step_of_an_earlier_attempt_is_replaced(tmp_path):
    old, new = make_state(), jax.tree.map(lambda x: x + x.dtype.type(1), make_state())
    with_store(tmp_path, lambda store: [store.save(step, old) for step in (5, 6)])

    def resume_from_5(store):
        store.restore(5, abstract(old))
        assert store.save(6, new)
        store.wait()
        assert_same(store.restore(6, abstract(new)), new)

    with_store(tmp_path, resume_from_5)


def test_deleted_step_disappears_at_once_and_can_be_saved_again(store):
    state = make_state()
    for step in (1, 2):
        store.save(step, state)
    store.wait()
    store.delete(1)
    assert store.steps() == [2]
    assert store.save(1, state)
    store.wait()
    assert_same(store.restore(1, abstract(state)), state)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7. Existing steps: 1, 2\."):
        store.delete(7)


def test_describe_returns_info_of_each_step(store):
    state = make_state()
    store.save(3, state)
    store.wait()
    Retention(store.directory, 2).record(3, {"heldout/accuracy": 0.5})
    (info,) = store.describe()
    assert info.step == 3 and info.results == {"heldout/accuracy": 0.5}
    assert info.bytes > 3 * 8 * 16 * 4
    assert abs(info.time - os.stat(store.directory).st_mtime) < 60


def test_restore_of_another_model_names_the_leaves_that_differ(store):
    state = make_state(width=16)
    store.save(3, state)
    store.wait()
    other = abstract(make_state(width=32))
    other["params"]["head/bias"] = jax.ShapeDtypeStruct((4,), jnp.float32)
    del other["rng"]
    with pytest.raises(CheckpointError) as error:
        store.restore(3, other)
    text = str(error.value)
    assert "params/encoder/0/kernel: checkpoint (8, 16) float32, model (8, 32) float32." in text
    assert "params/head/bias: checkpoint has none, model (4,) float32." in text
    assert "rng: checkpoint (2,) uint32, model has none." in text
    assert "8 of 11 leaves differ: " in text


@pytest.mark.faults
@pytest.mark.multiprocess
@pytest.mark.parametrize("statement", ["while True: store.poll()", "store.wait()"])
def test_failed_save_raises_once_and_the_next_save_works(tmp_path, statement):
    """Files are limited to a kilobyte, which simulates a full disk."""
    done = run(
        f"""
        import resource, signal, sys
        import jax.numpy as jnp, numpy as np
        from tests.checkpoint.saves import Saves
        from engine.base.errors import CheckpointError
        store = Saves(sys.argv[1])
        state = {{"params": {{"w": jnp.arange(1000.0)}}}}
        store.save(1, state)
        store.wait()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        former = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
        try:
            store.save(2, state)
            {statement}
        except CheckpointError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        store.poll()
        assert store.steps() == [1]
        assert store.save(2, state)
        store.wait()
        assert store.restore(2, state)["params"]["w"][999] == 999
        assert store.steps() == [1, 2]
        store.close()
        """,
        tmp_path,
    )
    assert "step 2 could not be saved" in done.stdout
    assert "The newest checkpoint is that of step 1." in done.stdout


def test_opening_an_unwritable_directory_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be opened for writing"):
        Saves(tmp_path / "file" / "checkpoints")


def test_restore_of_a_damaged_step_names_the_problems(store):
    state = make_state()
    for step in (1, 2):
        store.save(step, state)
    store.wait()
    (store.directory / "2" / "state" / "_METADATA").write_text("{")
    (store.directory / "2" / "position" / "position.json").unlink()
    with pytest.raises(DamagedCheckpoint, match=r"2: is damaged: state/_METADATA: found 1 bytes, expected \d+; posit"):
        store.restore(2, abstract(state))
    with pytest.raises(CheckpointError, match=r"2: cannot be read \(.*\)\. Other checkpoints there: 1\."):
        store.position(2)


def test_restore_detects_a_flipped_bit_in_any_file(store):
    state = make_state()
    store.save(1, state)
    store.wait()
    files = [path for path in (store.directory / "1").rglob("*") if path.is_file()]
    assert len(files) > 10
    rng = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        with pytest.raises(DamagedCheckpoint) as error:
            store.restore(1, abstract(state))
        (problem,) = error.value.problems
        assert problem.startswith(path.relative_to(store.directory / "1").as_posix())
        path.write_bytes(whole)
    assert_same(store.restore(1, abstract(state)), state)


def test_restore_detects_arrays_that_differ_from_their_digests(store):
    """Simulates a bit that changed between the device and the file, before the file was hashed."""
    state = make_state()
    store.save(1, state)
    store.wait()
    manifest = read_manifest(store.directory / "1")
    write_manifest(store.directory / "1", dataclasses.replace(manifest, arrays={**manifest.arrays, "step": "0" * 16}))
    with pytest.raises(DamagedCheckpoint, match=r"array step: found the digest \w{16}, expected 0{16}\."):
        store.restore(1, abstract(state))


def test_step_without_manifest_is_damaged(store):
    state = make_state()
    for step in (1, 2):
        store.save(step, state)
    store.wait()
    (store.directory / "2" / MANIFEST).unlink()
    assert store.steps() == [1] and store.latest() == 1 and store.candidates() == [2, 1]
    assert [(info.step, type(info.error)) for info in store.describe()] == [(1, type(None)), (2, DamagedCheckpoint)]
    with pytest.raises(DamagedCheckpoint, match=r"2: is damaged: manifest.json is missing"):
        store.restore(2, abstract(state))


def test_step_is_not_deleted_while_it_is_read(store):
    state = make_state()
    for step in (1, 2):
        store.save(step, state)
    store.wait()
    with read_lock(store.directory / "1"):
        store.delete(1)
        assert store.failed_deletions(60) == [] and store.steps() == [1, 2]
    store.delete(1)
    assert store.failed_deletions(60) == [] and store.steps() == [2]


def test_read_only_store_changes_no_files(tmp_path):
    state = make_state()
    with_store(tmp_path, lambda store: store.save(4, state))
    being_written = tmp_path / "5.orbax-checkpoint-tmp"
    being_written.mkdir()
    before = sorted(tmp_path.rglob("*"))
    store = CheckpointStore(tmp_path)
    assert store.steps() == [4]
    assert_same(store.restore(4, abstract(state)), state)
    with pytest.raises(CheckpointError, match="read-only"):
        store.delete(4)
    assert sorted(tmp_path.rglob("*")) == before


def test_listing_does_not_import_jax(tmp_path):
    with_store(tmp_path, lambda store: store.save(4, make_state()))
    run(f"""
        import sys
        from engine.checkpoint.store import CheckpointStore
        store = CheckpointStore({str(tmp_path)!r})
        assert [info.step for info in store.describe()] == [4]
        assert store.position(4)["next_batch"] == 3 and store.config_text(4).startswith("name")
        assert not {{"jax", "orbax", "tensorstore"}} & sys.modules.keys()
    """)


WRITER = """
    import sys, jax.numpy as jnp
    from tests.checkpoint.saves import Saves
    store = Saves(sys.argv[1])
    state = {{"params": {{"w": jnp.full(({size},), 1.0)}}}}
    store.save(1, state)
    store.wait()
    print("first", flush=True)
    store.save(2, {{"params": {{"w": state["params"]["w"] + 1}}}})
    print("second", flush=True)
    store.close()
    print("closed", flush=True)
"""


@pytest.mark.faults
@pytest.mark.multiprocess
def test_kill_during_a_save_keeps_the_previous_step_and_leftovers_are_removed(tmp_path):
    """The writer is stopped in the middle of a save, so that the test sees the partial files, and killed there."""
    writer = start(WRITER.format(size=32 << 20), tmp_path)
    assert writer.stdout is not None and writer.stdout.readline() == "first\n"
    partial = None
    while partial is None and writer.poll() is None:
        partial = next(tmp_path.glob("2.*"), None)
    writer.send_signal(signal.SIGSTOP)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert partial is not None and list(tmp_path.glob("2.*")), "the save was over before the kill"

    assert CheckpointStore(tmp_path).steps() == [1]

    want = {"params": {"w": jax.ShapeDtypeStruct((32 << 20,), jnp.float32, sharding=sharding(1))}}
    store = Saves(tmp_path)
    assert store.steps() == [1]
    restored = store.restore(1, want)
    assert (np.asarray(restored["params"]["w"]) == 1).all()
    assert store.save(3, restored)
    store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


def test_interrupted_deletion_is_completed_by_the_next_writer(tmp_path):
    with_store(tmp_path, lambda store: store.save(1, make_state()))
    (tmp_path / "1").rename(tmp_path / "1.deleted")
    with_store(tmp_path, lambda store: store.steps() == [] or pytest.fail("a deleted step is listed"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.multiprocess
def test_store_prints_nothing_and_the_process_exits_after_close(tmp_path):
    done = run(WRITER.format(size=1000), tmp_path)
    assert (done.stdout, done.stderr) == ("first\nsecond\nclosed\n", "")
    done = run(
        """
        import sys, jax.numpy as jnp
        from engine.checkpoint.store import CheckpointStore
        store = CheckpointStore(sys.argv[1])
        assert store.restore(2, {"params": {"w": jnp.zeros(1000)}})["params"]["w"][0] == 2
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.multiprocess
@pytest.mark.slow
def test_checkpoint_of_two_processes_restores_in_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    text = f"""
        import sys
        import jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from tests.checkpoint.saves import Saves
        rank = int(sys.argv[2])
        jax.distributed.initialize({address!r}, 2, rank, coordinator_bind_address={address!r})
        sharding = NamedSharding(jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,)), PartitionSpec("fsdp"))
        w = jax.make_array_from_process_local_data(sharding, np.full((3, 4), rank, np.float32))
        store = Saves(sys.argv[1])
        for step in (1, 2, 3):
            store.save(step, {{"w": w}})
            store.wait()
            if step > 1:
                store.delete(step - 1)
        again = store.restore(3, {{"w": jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=sharding)}})["w"]
        assert (np.asarray(again.addressable_data(0)) == rank).all()
        assert not store.save(3, {{"w": again}})
        store.close()
        jax.distributed.shutdown()
    """
    one_device = {"JAX_NUM_CPU_DEVICES": "1"}
    processes = [start(text, tmp_path, rank, **one_device) for rank in range(2)]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    store = CheckpointStore(tmp_path)
    assert store.steps() == [3]
    want = {"w": jax.ShapeDtypeStruct((6, 4), jnp.float32, sharding=sharding(8))}
    assert np.asarray(store.restore(3, want)["w"])[:, 0].tolist() == [0, 0, 0, 1, 1, 1]


def numbered(step):
    return {"w": jnp.full(4, float(step)), "step": jnp.int32(step)}


@pytest.fixture
def three(tmp_path):
    store = Saves(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        store.save(step, numbered(step))
    store.wait()
    yield store
    store.close()


def damage(store, step):
    (store.directory / str(step) / "position" / "position.json").write_text("{}")


def restore_latest(store):
    messages = []
    restored = store.restore_latest(numbered(0), say=messages.append)
    return (None if restored is None else (int(restored[0]["step"]), restored[1])), messages


def test_restore_latest_returns_the_newest_good_step(three):
    assert restore_latest(three) == ((3, 3), [])


def test_restore_latest_returns_none_without_checkpoints(tmp_path):
    store = Saves(tmp_path)
    assert restore_latest(store) == (None, [])
    store.close()


def test_restore_latest_sets_damaged_steps_aside_and_restores_the_previous_step(three):
    damage(three, 3)
    (three.directory / "2" / MANIFEST).unlink()
    (restored, messages), names = restore_latest(three), sorted(path.name for path in three.directory.iterdir())
    assert restored == (1, 1)
    assert messages[0].startswith(
        f"warning: the checkpoint of step 3 is damaged and set aside as {three.directory / '3.bad'}: position/position"
        ".json: found 2 bytes, expected "
    )
    assert "of step 2 is damaged" in messages[1] and "manifest.json is missing" in messages[1]
    assert names == ["1", "2.bad", "3.bad"] and three.steps() == [1]
    assert restore_latest(three) == ((1, 1), [])


def test_step_damaged_twice_is_set_aside_under_two_names(three):
    for _ in range(2):
        damage(three, 3)
        assert restore_latest(three)[0] == (2, 2)
        three.save(3, numbered(3))
        three.wait()
    assert [name for name, _ in list_set_aside(three.directory)] == ["3.bad-2", "3.bad"]
    assert restore_latest(three) == ((3, 3), [])


def test_run_without_a_good_step_stops_with_a_list_at_every_start(three):
    for step in (1, 2, 3):
        damage(three, step)
    for _ in range(2):
        with pytest.raises(NoUsableCheckpoint) as error:
            restore_latest(three)
        assert error.value.exit_code == ExitStatus.STOP
        lines = str(error.value).splitlines()
        assert [line.split(":")[0].strip() for line in lines[1:4]] == ["3.bad", "2.bad", "1.bad"]
        assert all("position/position.json: found 2 bytes, expected" in line for line in lines[1:4])
        assert "--fresh" in lines[4]


def test_step_that_is_renamed_back_is_verified_again(three):
    path = three.directory / "3" / "position" / "position.json"
    whole = path.read_bytes()
    damage(three, 3)
    assert restore_latest(three)[0] == (2, 2)
    back = (three.directory / "3.bad").rename(three.directory / "3")
    (back / "position" / "position.json").write_bytes(whole)
    assert restore_latest(three) == ((3, 3), [])


def test_step_of_another_model_is_not_set_aside(three):
    with pytest.raises(CheckpointError, match="is not a checkpoint of this model"):
        three.restore_latest({"w": jnp.zeros(5)})
    assert three.steps() == [1, 2, 3]


def test_step_of_a_newer_format_raises_and_is_not_set_aside(three):
    path = three.directory / "3"
    write_manifest(path, dataclasses.replace(read_manifest(path), format=3))
    with pytest.raises(
        UnsupportedFormat, match=rf"^{path}: was saved in format 3; this version .* up to format 2\. Use"
    ):
        restore_latest(three)
    assert three.steps() == [1, 2, 3]


def with_store(directory: Path, use) -> None:
    store = Saves(directory)
    use(store)
    store.close()


def program(text: str) -> list[str]:
    return [sys.executable, "-W", "error", "-c", textwrap.dedent(text)]


def run(text: str, *arguments) -> subprocess.CompletedProcess:
    command = [*program(text), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def start(text: str, *arguments, **environment) -> subprocess.Popen:
    command = [*program(text), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
