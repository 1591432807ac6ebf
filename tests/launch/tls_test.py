"""Mutual TLS between the processes of a run, with JAX's environment variables for it."""

import importlib.metadata
import os
import shutil
import subprocess

import pytest

from engine.config.text import to_text
from engine.run.directory import RunDirectory
from tests import runs

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("openssl") is None and "CI" not in os.environ, reason="no openssl"),
    pytest.mark.skipif(
        tuple(map(int, importlib.metadata.version("jax").split(".")[:2])) < (0, 12), reason="this jax has no mutual TLS"
    ),
]


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def authority(folder):
    """Creates a certificate authority and its certificate for 127.0.0.1; returns JAX's variables for them."""
    folder.mkdir()
    ca, key, cert = (folder / name for name in ("ca.pem", "key.pem", "cert.pem"))
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    signs = ("-addext", "keyUsage=critical,keyCertSign")
    openssl(
        "req", "-x509", *new, *signs, "-days", 2, "-keyout", folder / "ca.key", "-out", ca, "-subj", "/CN=authority"
    )
    openssl("req", *new, "-keyout", key, "-out", folder / "request.pem", "-subj", "/CN=convoy")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    openssl(
        "x509", "-req", "-in", folder / "request.pem", "-CA", ca, "-CAkey", folder / "ca.key", "-CAcreateserial",
        "-days", 2, "-extfile", folder / "names", "-out", cert,
    )  # fmt: skip
    return {"JAX_MTLS_CERT_FILE": str(cert), "JAX_MTLS_KEY_FILE": str(key), "JAX_MTLS_CA_FILE": str(ca)}


def test_processes_with_certificates_train_and_coordinator_refuses_others(tmp_path):
    (tmp_path / "config").mkdir()
    ours, others = authority(tmp_path / "ours"), authority(tmp_path / "others")
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    hook = {"target": "probe.Handshake", "every": "5 steps", "ours": ours, "others": others}
    RunDirectory(tmp_path / "config").write_config_text(to_text(runs.config(mesh__fsdp=2, hooks={"probe": hook})))
    words = ("launch", "local", "--processes=2", "--devices-per-process=1", "--", "train")
    done = subprocess.run(
        runs.command(*words, f"--config={tmp_path / 'config'}", f"--workdir={tmp_path / 'run'}"),
        capture_output=True, text=True, timeout=300, env=runs.environment(PYTHONPATH=str(tmp_path), **ours),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "with our certificate: accepted" in done.stdout + done.stderr
    assert "with another authority's: refused" in done.stdout + done.stderr
    assert "without one: refused" in done.stdout + done.stderr
    alone = runs.convoy(
        "train", f"--config={tmp_path / 'config'}", f"--workdir={tmp_path / 'alone'}",
        PYTHONPATH=str(tmp_path), JAX_NUM_CPU_DEVICES="2",
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert runs.rows(tmp_path / "run") == runs.rows(tmp_path / "alone")


PROBE = '''
import dataclasses
import os
import socket
import ssl


@dataclasses.dataclass
class Handshake:
    """Hook that connects to the coordinator of this run like another program, and prints the result."""

    ours: dict
    others: dict

    def run(self, trainer, state, step):
        address = os.environ.get("CONVOY_COORDINATOR")
        if address is None or os.environ["CONVOY_PROCESS_ID"] != "0":
            return
        kinds = {"with our certificate": self.ours, "with another authority's": self.others, "without one": None}
        for name, files in kinds.items():
            print(f"{name}: {self.shake(address, files)}", flush=True)

    def shake(self, address, files):
        context = ssl.create_default_context(cafile=self.ours["JAX_MTLS_CA_FILE"])
        context.set_alpn_protocols(["h2"])
        if files is not None:
            context.load_cert_chain(files["JAX_MTLS_CERT_FILE"], files["JAX_MTLS_KEY_FILE"])
        host, _, port = address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), timeout=10) as plain:
                with context.wrap_socket(plain, server_hostname=host) as safe:
                    return "accepted" if safe.recv(1) else "refused"
        except (ssl.SSLError, ConnectionError) as error:
            return f"refused ({error})"
'''
