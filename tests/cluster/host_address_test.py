"""The address of this host. tests/launch/hosts_test.py has two hosts, one of which others cannot reach."""

import socket
import types

import jax
import pytest

from engine.cluster import host_address


@pytest.mark.parametrize(("name", "address"), [("localhost", "127.0.0.1"), ("nowhere.invalid", ""), ("192.0.2.1", "")])
def test_own_address_is_the_first_one_that_can_be_bound(name, address, monkeypatch):
    """192.0.2.1 is an address that no host has (RFC 5737)."""
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    assert host_address.own_address() == address


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        *((address, True) for address in ("127.0.1.1", "::1", "[::1]", "localhost")),
        *((address, False) for address in ("10.0.0.1", "fe80::1%eth0", "a-host", "")),
    ],
)
def test_loopback_addresses_are_recognized(address, loopback):
    assert host_address.is_loopback(address) == loopback


def test_processes_of_one_network_namespace_have_the_same_network_id():
    assert host_address.network_id() == host_address.network_id() != ""


@pytest.mark.parametrize(("platforms", "cpu"), [("cpu", True), ("cuda,cpu", False), ("tpu", False)])
def test_configured_platforms_decide_whether_only_cpus_are_used(platforms, cpu, monkeypatch):
    monkeypatch.setattr(jax, "config", types.SimpleNamespace(jax_platforms=platforms))
    assert host_address.uses_only_cpu() == cpu
