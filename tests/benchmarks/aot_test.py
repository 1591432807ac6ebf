"""Measures of compiled programs read from HLO text, and the rows of the benchmark."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.aot import __main__ as aot
from benchmarks.aot import measures
from benchmarks.aot.programs import Compiled
from benchmarks.aot.rows import ROWS
from engine.compile.hlo_text import HloText

LOOP = """HloModule test

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %a = bf16[4,8]{1,0} get-tuple-element(%p), index=1
  %b = f32[8,4]{1,0} get-tuple-element(%p), index=2
  %d = f32[4,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, backend_config={"estimated_cycles":"10"}
  %splash_mha_fwd_residuals.1 = (bf16[2,4,16,8]{3,2,1,0}, f32[2]) custom-call(%a), custom_call_target="tpu_custom_call"
  %splash_mha_dq.1 = bf16[2,4,16,8]{3,2,1,0} custom-call(%a), custom_call_target="tpu_custom_call"
  ROOT %t = (s32[], f32[8]{0}) tuple(%p, %a)
}

ENTRY %main (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %big = f32[64,64]{1,0} broadcast(%p.1), metadata={op_name="jit(f)/broadcast"}
  %c = f32[8]{0} negate(%p.1), backend_config={"estimated_cycles":"7"}
  ROOT %w = (s32[], f32[8]{0}) while(%p.1), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""
PROGRAM = HloText.parse(LOOP)


def test_cycles_products_and_kernels_of_a_loop_are_multiplied_out():
    assert measures.cycles(PROGRAM) == 3 * 10 + 7
    assert measures.products(PROGRAM) == {"bf16 x f32 -> f32": 3}
    assert measures.kernels(PROGRAM) == {"splash fwd": 3, "splash dq": 3}


def test_large_results_are_listed_with_their_operation():
    assert measures.largest(PROGRAM, 64 * 64) == ["f32[64,64]{1,0} broadcast jit(f)/broadcast"]
    assert measures.largest(PROGRAM, 64 * 64 + 1) == []


def test_measures_of_a_compiled_program_are_stored_as_json(tmp_path, monkeypatch):
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    x = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
    compiled = Compiled(jax.jit(lambda x: (x @ x.T).sum()).lower(x).compile(), mesh, 64 * 8 * 4 // 8, 0)
    monkeypatch.setattr(aot, "devices", lambda target: [])
    monkeypatch.setattr(aot, "compile_engine", lambda job, devices: compiled)
    monkeypatch.setattr(aot, "compile_plain", lambda job, devices: compiled)
    assert aot.main(["--tiny", "--rows=h100-fsdp", f"--json={tmp_path / 'a.json'}", f"--hlo={tmp_path}"]) == 0
    stored = json.loads((tmp_path / "a.json").read_text())
    assert set(stored) == {"h100-fsdp engine", "h100-fsdp plain jit"}
    assert stored["h100-fsdp engine"]["sent"] == sum(stored["h100-fsdp engine"]["by_axis"].values()) > 0
    assert (tmp_path / "h100-fsdp engine.txt").read_text().startswith("HloModule")


def test_rows_are_listed_and_unknown_rows_are_refused(capsys):
    assert aot.main(["--list"]) == 0
    assert all(name in capsys.readouterr().out for name in list(ROWS)[:1])
    assert aot.main(["--rows=v5e-fdsp"]) == 2
    assert "v5e-fdsp is unknown" in capsys.readouterr().err
