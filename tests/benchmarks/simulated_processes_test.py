"""The requests that N real processes without devices send to process 0, as docs/scale.md states them."""

import pytest

from benchmarks.coordination import exponent
from benchmarks.simulated_processes import ARRAYS, REAL_TIME, Result, dilation, simulate

pytestmark = pytest.mark.multiprocess

EXCHANGES = {"start": (13, 4, 0), "agree": (1, 1, 0), "save": (3, 2, 1), "restore": (4, 2, 1), "leave": (1, 1, 0)}
"""Broadcasts, gathers and scatters of each phase, as in the table of the page. The save is the last one of a run."""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, Result]:
    return {count: simulate(count, tmp_path_factory.mktemp(f"of_{count}"), idle_s=0) for count in (8, 16)}


def test_more_processes_than_the_cores_can_poll_for_poll_less_often():
    assert dilation(16) == dilation(REAL_TIME) == 1
    assert 1850 * 1e-3 / dilation(1000) < 0.5  # cores that the polls of 1,000 processes need


@pytest.mark.parametrize("phase", EXCHANGES)
def test_requests_of_each_process_are_independent_of_their_number(results, phase):
    broadcasts, gathers, scatters = EXCHANGES[phase]
    for count, result in results.items():
        for index, requests in enumerate(result.requests[phase][1:], 1):
            number = {k: n for k, n in requests.number.items() if not k.startswith("poll ") and k != "broadcast delete"}
            expected = {
                "broadcast get": broadcasts, "broadcast increment": broadcasts, "gather set": gathers,
                "scatter get": scatters, "scatter delete": scatters,
            }  # fmt: skip
            assert number == {kind: n for kind, n in expected.items() if n}, (count, index)


@pytest.mark.parametrize("phase", EXCHANGES)
def test_requests_of_the_primary_grow_linearly(results, phase):
    broadcasts, gathers, scatters = EXCHANGES[phase]
    for count, result in results.items():
        primary, everyone = result.requests[phase][0], result.all(phase)
        assert primary.number["broadcast set"] == everyone.number["broadcast delete"] == broadcasts
        assert primary.number["scatter set"] == scatters * (count - 1)
        assert primary.number["gather get"] <= gathers * count
        # Each value is read at least once, and again by each further read of all keys: few, however many are late.
        read = primary.values["gather dir_get"] + primary.values["gather get"]
        assert gathers * count <= read <= 20 * gathers * count, primary


def test_bytes_of_a_start_and_a_save_grow_linearly(results):
    for phase, most in (("start", 3000), ("save", 14 * ARRAYS)):
        for count, result in results.items():
            sent = sum(result.requests[phase][index].total(polls=False)[1] for index in range(1, count))
            assert sent <= most * count, (phase, count)


def test_process_waits_for_a_verdict_in_one_request(results):
    for result in results.values():
        for index, (*before, leave) in enumerate(zip(*result.requests.values(), strict=True)):
            assert not any(requests.number["poll verdict"] for requests in before), index  # none has had an answer
            # Leaving cancels the request, and a cancelled request is repeated if the client is still there by then.
            assert leave.number["poll verdict"] in (1, 2), index


def test_no_process_but_the_primary_reads_a_folder(results):
    for result in results.values():
        for phase, processes in result.requests.items():
            for requests in processes[1:]:
                assert not [kind for kind in requests.number if kind.endswith("dir_get")], phase


def test_exponent_is_1_for_linear_and_2_for_quadratic_growth():
    assert exponent({n: 7 * n for n in (10, 20, 40)}) == pytest.approx(1)
    assert exponent({n: n * n for n in (10, 20, 40)}) == pytest.approx(2)
