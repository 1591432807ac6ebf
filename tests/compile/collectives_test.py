"""Collectives read from HLO text (all notations, loops, branches, fusions) and from a compiled program."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from engine.compile.collectives import Collective, collectives, summed
from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshSpec(data=2, fsdp=4))  # positions 0 to 3 are the first row of data


def program(*lines, other=""):
    body = "".join(f"  {line}\n" for line in lines)
    return f"HloModule test\n\n{other}ENTRY %main.1_spmd (p: f32[8]) -> f32[8] {{\n{body}}}\n"


def only(text, mesh):
    (found,) = collectives(text, mesh)
    return found


@pytest.mark.parametrize(
    ("groups", "axes", "group"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", ("fsdp",), 4),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",), 2),
        ("{}", ("data", "fsdp"), 8),
        ("[2,4]<=[8]", ("fsdp",), 4),
        ("[4,2]<=[2,4]T(1,0)", ("data",), 2),
        ("[1,8]<=[8]", ("data", "fsdp"), 8),
        ("mesh['axis_0'=8] {'axis_0'}", ("data", "fsdp"), 8),
        ("mesh['data'=2,'fsdp'=4] {'fsdp'}", ("fsdp",), 4),
        ("mesh['data'=2,'fsdp'=4] {'data'}", ("data",), 2),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ("data", "fsdp"), 4),
        ("mesh['a'=8] {'a':(1)2}", ("data",), 2),
        ("mesh['a'=8] {'a':(2)4}", ("fsdp",), 4),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",), 2),
        ("mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'a'}", ("fsdp",), 2),  # a part of the axis
        ("something new", None, 8),
    ],
)
def test_replica_groups_in_every_notation_are_mapped_to_axes(mesh, groups, axes, group):
    found = only(
        program(f"%x = f32[16]{{0}} all-gather(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}"), mesh
    )
    assert (found.kind, found.axes, found.group, found.bytes) == ("all-gather", axes, group, 64)


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("%x = f32[4,8]{1,0:T(8,128)S(1)} all-reduce(%p)", 128),
        ("%x = (f32[4]{0}, bf16[3,2]{1,0}, /*index=2*/pred[5], f32[]) all-reduce(%p, %q)", 16 + 12 + 5 + 4),
        ("ROOT %x = f8e4m3fn[16] all-to-all(%p), dimensions={0}", 16),
        ("%x = s4[16] all-gather(%p)", 8),
        ("%s = (f32[2]{0}, f32[16]{0}) all-gather-start(%p)", 64),
        ("%s = ((f32[2]{0}, f32[1]{0}), (f32[16]{0}, f32[8]{0})) all-gather-start(%p, %q)", 96),
        ("%s = (f32[2]{0}, f32[3]{0}) all-reduce-start(%p, %q)", 20),
        ("%s = ((f32[2]{0}), f32[2]{0}) all-reduce-start(%p)", 8),
        ("%s = ((f32[64]{0}), f32[8]{0}, u32[]) reduce-scatter-start(%p)", 32),
    ],
)
def test_bytes_are_the_result_size_on_one_device(mesh, line, size):
    assert only(program(f"{line}, channel_id=1, replica_groups=[2,4]<=[8]"), mesh).bytes == size


def test_done_instruction_of_an_asynchronous_collective_is_not_counted(mesh):
    start = "%s = (f32[2]{0}, f32[16]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8]"
    assert len(collectives(program(start, "%d = f32[16]{0} all-gather-done(%s)"), mesh)) == 1


def test_permute_axes_are_those_in_which_its_pairs_differ(mesh):
    pairs = "source_target_pairs={{0,1},{1,0},{2,2}}"
    line = f"%x = (f32[8]{{0}}, f32[8]{{0}}, u32[], u32[]) collective-permute-start(%p), {pairs}"
    assert only(program(line), mesh) == Collective("collective-permute", ("fsdp",), 2, 1, 32, 32, asynchronous=True)
    assert only(program("%x = f32[8] collective-permute(%p), source_target_pairs={{0,5}}"), mesh).axes == (
        "data",
        "fsdp",
    )
    assert collectives(program("%x = f32[8] collective-permute(%p), source_target_pairs={{1,1}}"), mesh) == []


def test_groups_of_one_device_are_left_out(mesh):
    assert collectives(program("%x = f32[8] all-reduce(%p), replica_groups=[8,1]<=[8]"), mesh) == []


@pytest.mark.parametrize(
    ("kind", "moved"),
    [("all-reduce", 120), ("all-gather", 60), ("all-to-all", 60), ("reduce-scatter", 240)],
)
def test_moved_bytes_follow_the_ring_algorithm(kind, moved):
    mesh = make_mesh(MeshSpec(fsdp=4), jax.devices()[:4])
    assert only(program(f"%x = f32[20] {kind}(%p), replica_groups=[1,4]<=[4]"), mesh).moved == moved


REDUCE = "%r = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups=[1,8]<=[8]"


def computation(name, *lines):
    return f"%{name} (p: f32[8]) -> f32[8] {{\n" + "".join(f"  {line}\n" for line in lines) + "}\n\n"


def test_loop_body_counts_once_per_iteration(mesh):
    body = computation("body.1", REDUCE)
    turns = 'backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}'
    loop = "%w = f32[8] while(%p), condition=%cond, body=%body.1"
    found = only(program(f"{loop}, {turns}", other=body), mesh)
    assert (found.count, found.bytes, found.moved, found.exact) == (3, 96, 168, True)
    found = only(program(loop, other=body), mesh)
    assert (found.count, found.exact) == (1, False)
    outer = body + computation("outer", f"{loop}, {turns}")
    nested = f"%w = f32[8] while(%p), condition=%cond, body=%outer, {turns}"
    assert only(program(nested, other=outer), mesh).count == 9


def test_calls_are_followed_and_the_most_expensive_branch_counts(mesh):
    parts = computation("a", REDUCE) + computation("b", REDUCE, REDUCE) + computation("c", "%n = f32[8] negate(%p)")
    assert len(collectives(program("%x = f32[8] call(%p), to_apply=%a", other=parts), mesh)) == 1
    assert len(collectives(program("%x = f32[8] async-start(%p), calls=%b", other=parts), mesh)) == 2
    branch = "%x = f32[8] conditional(%i, %p, %p, %p), branch_computations={%a, %b, %c}"
    assert len(collectives(program(branch, other=parts), mesh)) == 2
    branch = "%x = f32[8] conditional(%i, %p, %p), true_computation=%c, false_computation=%a"
    assert len(collectives(program(branch, other=parts), mesh)) == 1


def test_collectives_in_tpu_fusions_are_found(mesh):
    scatter = computation("all-reduce-scatter.1", REDUCE, "ROOT %d = f32[1]{0} dynamic-slice(%r, %i)")
    fusion = "%f = f32[1]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1"
    found = only(program(fusion, other=scatter), mesh)
    assert found == Collective("reduce-scatter", ("data", "fsdp"), 8, 1, 4, 28)
    shared = "".join(computation(name, REDUCE) for name in ("start", "middle", "done"))
    lines = [f"%{name} = f32[8] fusion(%p), kind=kCustom, calls=%{name}" for name in ("start", "middle", "done")]
    assert only(program(*lines, other=shared), mesh).count == 1


def test_collective_that_a_tpu_advances_in_other_fusions_and_loops_counts_once_and_is_asynchronous(mesh):
    start = computation("start", REDUCE, '%c = f32[8] custom-call(%r), custom_call_target="AsyncCollectiveStart"')
    step = computation("async_collective_fusion.1", REDUCE)
    body = computation("body.1", "%m = f32[8] fusion(%p), kind=kOutput, calls=%async_collective_fusion.1")
    turns = 'backend_config={"known_trip_count":{"n":"3"}}'
    lines = [
        "%s = f32[8] fusion(%p), kind=kCustom, calls=%start",
        f"%w = f32[8] while(%p), condition=%cond, body=%body.1, {turns}",
    ]
    found = only(program(*lines, other=start + step + body), mesh)
    assert (found.count, found.asynchronous) == (1, True)


def test_collectives_that_the_device_waits_for_are_synchronous(mesh):
    start = "%s = (f32[2]{0}, f32[16]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8]"
    assert only(program(start), mesh).asynchronous
    assert not only(program(start + ', backend_config={"is_sync":true}'), mesh).asynchronous
    assert not only(program(start.replace("-start", "")), mesh).asynchronous
    wrapped, part = "%x = f32[8] async-start(%p), calls=%a", computation("a", REDUCE)
    assert only(program(wrapped, other=part), mesh).asynchronous
    assert not only(program(wrapped + ', backend_config={"is_sync":true}', other=part), mesh).asynchronous
    assert only(program(start), mesh).shape == "f32[16]"


def test_collectives_of_one_kind_and_axes_are_summed(mesh):
    other = REDUCE.replace("[1,8]<=[8]", "[2,4]<=[8]").replace("channel_id=1", "channel_id=2")
    found = summed(collectives(program(REDUCE, other, REDUCE), mesh))
    assert [(c.axes, c.count, c.bytes) for c in found] == [(("data", "fsdp"), 2, 64), (("fsdp",), 1, 32)]


def test_compiled_program_on_a_reordered_mesh():
    """The text numbers devices by their index in the mesh, not by id: here they are in reverse order."""
    mesh = make_mesh(MeshSpec(data=2, fsdp=4), jax.devices()[::-1])

    def body(x, _):  # [1, 2] on a device
        return jax.lax.ppermute(x + jax.lax.psum(x, "data"), "fsdp", [(i, (i + 1) % 4) for i in range(4)]), None

    spec = P("data", "fsdp")
    loop = jax.shard_map(lambda x: jax.lax.scan(body, x, length=3)[0], mesh=mesh, in_specs=spec, out_specs=spec)
    x = jax.ShapeDtypeStruct((2, 8), jnp.float32, sharding=NamedSharding(mesh, spec))
    found = summed(collectives(str(jax.jit(loop).lower(x).compile().as_text()), mesh))
    assert [(c.kind, c.axes, c.count, c.bytes, c.exact) for c in found] == [
        ("all-reduce", ("data",), 3, 3 * 8, True),
        ("collective-permute", ("fsdp",), 3, 3 * 8, True),
    ]
