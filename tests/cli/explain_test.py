"""`convoy explain` in a process, with and without devices."""

import os
import subprocess

from tests import runs

DIGITS = "--config=configs.digits"


def test_explain_prints_mesh_and_parameters():
    done = runs.convoy("explain", DIGITS, "--config.mesh.fsdp=-1", JAX_NUM_CPU_DEVICES="4")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "mesh: fsdp=4 (4 x cpu), from the config"
    assert "hidden/1/kernel f32[128,128] - (fsdp, -) 16.0 KiB/device" in lines
    assert any(line.startswith("all-gather fsdp 4 devices") for line in lines)
    flops = 2 * 64 * (2 * 64 * 128 + 3 * 128 * 128 + 3 * 128 * 10)  # no gradient of the images
    assert f"FLOPs of a step, on all devices: {flops:.3e} of the model" in done.stdout


def test_explain_needs_no_devices():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}

    def explain(*args):
        words = runs.command("explain", DIGITS, "--config.mesh.tensor=2", "--no-collectives", *args)
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = explain("--config.mesh.fsdp=8", "--config.mesh.data=4", "--config.train.precision=bfloat16")
    assert "train.precision=bfloat16 rounds the input image, also in evaluations" in text
    assert text.startswith("mesh: data=4 x fsdp=8 x tensor=2 (64 x cpu), from the config\n")
    assert "warning: mesh.tensor = 2 splits no parameter" in text and "collectives" not in text
    text = explain("--config.mesh.fsdp=-1", "--devices=16")
    assert text.startswith("mesh: fsdp=8 x tensor=2 (16 x cpu), from the config\n")
