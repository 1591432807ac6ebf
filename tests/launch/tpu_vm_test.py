"""The gcloud commands for TPU VMs, and the words that the shell of a host parses from them."""

import re
import subprocess

import pytest

from engine.base.errors import ConfigError
from engine.cluster.exit_status import is_retried
from engine.launch.tpu_vm import SOURCES, TpuVm
from tests.launch.fakes import ROOT, fake_command, path_with

COMMAND = ["train", "--config=configs.digits", "--config.train.total=2 epochs", "--workdir=/mnt/it's $HOME"]


def vm(**settings) -> TpuVm:
    given = {"name": "v5e", "zone": "us-west4-a", "type": "v5litepod-16", "version": "v2-alpha-tpuv5-lite", **settings}
    return TpuVm(**given)


def option(command: list[str], name: str) -> str:
    (found,) = [word.partition("=")[2] for word in command if word.startswith(f"--{name}=")]
    return found


def test_single_slice_is_created_as_a_tpu_vm():
    (create,) = vm(spot=True, project="p1").create()
    assert create[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "v5e"]
    assert set(create[6:]) == {
        "--zone=us-west4-a", "--project=p1", "--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite",
        "--spot",
    }  # fmt: skip
    assert vm().delete() == [
        ["gcloud", "compute", "tpus", "tpu-vm", "delete", "v5e", "--zone=us-west4-a", "--quiet"],
    ]


def test_queued_resource_requests_one_or_more_slices():
    (create,) = vm(queued=True).create()
    assert create[3:6] == ["queued-resources", "create", "v5e"]
    assert (option(create, "node-id"), option(create, "runtime-version")) == ("v5e", "v2-alpha-tpuv5-lite")
    several = vm(queued=True, slices=3)
    (create,) = several.create()
    assert (option(create, "node-prefix"), option(create, "node-count")) == ("v5e", "3")
    assert [command[5] for command in several.run(COMMAND)] == ["v5e-0", "v5e-1", "v5e-2"]
    assert several.logs()[0][5] == "v5e-0"
    (delete,) = several.delete()
    assert delete[3:6] == ["queued-resources", "delete", "v5e"] and "--force" in delete


def test_install_copies_the_sources_and_installs_locked_packages():
    make, copy, put = vm().install()
    assert copy[4:] == ["scp", "--recurse", *SOURCES, "v5e:convoy/", "--worker=all", "--zone=us-west4-a"]
    assert all((ROOT / source).exists() for source in SOURCES)
    for command in (make, put):
        assert command[4:6] == ["ssh", "v5e"] and option(command, "worker") == "all"
        subprocess.run(["bash", "-n", "-c", option(command, "command")], check=True)
    assert "--require-hashes -r tpu.lock" in option(put, "command")


def test_command_words_reach_the_host_unchanged(tmp_path):
    (command,) = vm(variables={"XLA_FLAGS": "--a --b"}).run(COMMAND)
    assert option(command, "worker") == "all"
    fake_command(tmp_path, "sudo", "printf '%s\\n' \"$@\"")
    host = {"PATH": path_with(tmp_path), "HOME": "/home/me too", "USER": "me"}
    done = subprocess.run(["bash", "-c", option(command, "command")], env=host, capture_output=True, text=True)
    words = done.stdout.splitlines()
    assert words[0] == "systemd-run"
    assert words[-len(COMMAND) - 1 :] == ["/home/me too/convoy-env/bin/convoy", *COMMAND]
    properties = dict(re.findall(r"^--property=(\w+)=(.*)$", done.stdout, re.MULTILINE))
    assert (properties["User"], properties["WorkingDirectory"]) == ("me", "/home/me too")
    codes = {int(word) for word in properties["RestartForceExitStatus"].split() if word.isdecimal()}
    assert codes == {code for code in range(256) if is_retried(code)}
    assert "--setenv=XLA_FLAGS=--a --b" in words and "--setenv=CONVOY_RUN_TOKEN=tpu-vm-v5e" in words


def test_stop_sends_sigterm_through_systemd():
    (stop,) = vm().stop()
    assert (option(stop, "worker"), option(stop, "command")) == ("all", "sudo systemctl stop convoy")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(name="V5E"), "--name = 'V5E': allowed are"),
        (dict(slices=0), "--slices = 0"),
        (dict(slices=2), "--slices = 2: several slices are requested as one queued resource. Add --queued."),
        (dict(type=""), "convoy launch tpu-vm create: --type and --version are required"),
    ],
)  # fmt: skip
def test_invalid_vm_is_a_config_error(settings, sentence):
    with pytest.raises(ConfigError) as error:
        vm(**settings).create()
    assert str(error.value).startswith(sentence)
    with pytest.raises(ConfigError, match="convoy launch tpu-vm run: found nothing after --"):
        vm().run([])
