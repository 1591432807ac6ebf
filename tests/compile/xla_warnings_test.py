"""XLA's warning about a full rematerialization is explained, and its output still reaches standard error."""

import io
import os
import sys
import tempfile

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from engine.compile.xla_warnings import explain, rematerialization_explained
from engine.config.schema import MeshSpec
from engine.parallel.mesh import make_mesh


def test_warning_of_xla_is_explained_and_still_printed(capfd):
    mesh = make_mesh(MeshSpec(data=2, fsdp=2, tensor=2))

    def change_sharding(x):
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(None, None, ("fsdp", "data"))))
        return jax.lax.with_sharding_constraint(jnp.sin(x), NamedSharding(mesh, PartitionSpec("data", None, None)))

    said = []
    with rematerialization_explained(said.append):
        jax.jit(change_sharding).lower(jnp.zeros((16, 16, 16))).compile()
        os.write(2, b"other output\n")
    printed = capfd.readouterr().err
    assert "Involuntary full rematerialization" in printed and "other output\n" in printed
    (sentence,) = said
    assert "f32[16,16,4] of jit(change_sharding)/sharding_constraint goes from [-, -, fsdp x data] to" in sentence
    assert "[data, -, -]. The results are right." in sentence and "sharding.rules" in sentence


def test_nothing_is_said_without_the_warning_and_errors_pass(capfd):
    said = []
    try:
        with rematerialization_explained(said.append):
            os.write(2, b"W0000 another warning\n")
            raise KeyError("x")
    except KeyError:
        pass
    with rematerialization_explained(said.append):
        os.write(2, b"W0000 another warning\n")
    os.write(2, b"after\n")
    assert said == []
    assert capfd.readouterr().err == "W0000 another warning\n" * 2 + "after\n"


def test_closed_stream_missing_tee_and_missing_folder_are_no_error(monkeypatch, capfd):
    closed, said = io.StringIO(), []
    closed.close()
    for stream in (None, closed):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            with rematerialization_explained(said.append):
                os.write(2, b"output\n")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        with pytest.raises(KeyError) as error, rematerialization_explained(said.append):
            os.write(2, b"without a copy\n")
            raise KeyError("x")
    assert error.value.__context__ is None
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", lambda: os.open("/nothing/here", os.O_RDONLY))
        with rematerialization_explained(said.append):
            os.write(2, b"without a file\n")
    assert said == [] and capfd.readouterr().err == "output\n" * 2 + "without a copy\nwithout a file\n"


def test_each_array_is_named_once_and_at_most_three():
    warning = (
        "[SPMD] Involuntary full rematerialization. The compiler cannot go from sharding {{devices=[2,1]<=[2]}} to "
        "{{devices=[1,2]<=[2]}} efficiently for HLO operation %copy.{i} = f32[{n},8]{{1,0}} copy(%x), "
        "metadata={{}}. As\n"
    )
    text = "".join(warning.format(i=i, n=8 + i // 2) for i in range(10))
    assert "f32[8,8] of an operation goes from {devices=[2,1]<=[2]} to {devices=[1,2]<=[2]}; f32[9,8]" in explain(text)
    assert "; and 2 more. The results are right" in explain(text)
    assert explain("no warning\n") == ""
