import pytest

from engine.base.host import HostMemory
from engine.data import prefetch
from engine.data.prefetch import IN_FLIGHT, LEAST, MOST, dispatches_ahead, dispatches_in_flight, least_ahead

MIB = 2**20


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """1,000 MiB of host memory, of which 80 % is free."""
    monkeypatch.setattr(prefetch, "host_memory", lambda: HostMemory(1000 * MIB, container=True))
    monkeypatch.setattr(prefetch, "free_share", lambda: 0.8)


@pytest.mark.parametrize(
    ("dispatch", "expected"),
    [(4 * MIB, 10), (100 * MIB, LEAST), (0, MOST)],  # 5 % of 800 MiB
)
def test_auto_reads_as_many_dispatches_ahead_as_fit_into_a_share_of_free_memory(dispatch, expected):
    assert dispatches_ahead("auto", dispatch) == expected


def test_number_is_used_as_it_is_and_auto_is_two_where_the_system_states_no_memory(monkeypatch):
    monkeypatch.setattr(prefetch, "host_memory", lambda: None)
    assert [dispatches_ahead(setting, MIB) for setting in (0, 7, "auto")] == [0, 7, LEAST]
    assert [least_ahead(setting) for setting in (0, 7, "auto")] == [0, 7, LEAST]


def test_auto_keeps_fewer_dispatches_on_the_devices_if_their_batches_take_much_memory():
    found = [dispatches_in_flight("auto", size * MIB, 100 * MIB) for size in (0, 3, 4, 50)]  # of 10 MiB
    assert found == [IN_FLIGHT, IN_FLIGHT, 1, 1]
    assert dispatches_in_flight(5, 50 * MIB, 100 * MIB) == IN_FLIGHT
    assert dispatches_in_flight("auto", 50 * MIB, None) == IN_FLIGHT
