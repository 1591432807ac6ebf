import sys
import threading

import pytest

from engine.observe.throughput import FlopsCount, Reading, Throughput


def test_rates_match_a_hand_computed_example():
    throughput = Throughput(128, lambda wait: 2e9, hardware_flops_per_step=3e9, peak_flops=1e12)
    throughput.arrived(step=10, time_s=100.0, wait_s=1.0)
    throughput.arrived(step=30, time_s=101.0, wait_s=1.1)
    throughput.arrived(step=60, time_s=102.0, wait_s=1.2)
    assert throughput.values() == pytest.approx(
        {
            "examples_per_s": 50 * 128 / 2.0,
            "step_time_s": 2.0 / 50,
            "data_wait": 0.2 / 2.0,
            "flop_per_s": 50 * 2e9 / 2.0,
            "mfu": 50 * 2e9 / 2.0 / 1e12,
            "hfu": 50 * 3e9 / 2.0 / 1e12,
        }
    )


def test_values_cover_the_last_interval_and_total_covers_all():
    throughput = Throughput(batch_size=10)
    throughput.arrived(0, 0.0, 0.0)
    throughput.arrived(100, 1.0, 0.0)
    assert throughput.values()["examples_per_s"] == pytest.approx(1000)
    throughput.arrived(200, 5.0, 2.0)
    values = throughput.values()
    assert values == pytest.approx({"examples_per_s": 250, "step_time_s": 0.04, "data_wait": 0.5})
    assert throughput.total() == pytest.approx({"examples_per_s": 400, "step_time_s": 0.025, "data_wait": 0.4})


def test_rates_are_empty_before_two_arrivals():
    throughput = Throughput(batch_size=10)
    assert throughput.values() == {} and throughput.total() == {}
    throughput.arrived(5, 3.0, 0.0)
    assert throughput.values() == {} and throughput.total() == {}


def test_values_without_a_new_arrival_are_repeated():
    throughput = Throughput(batch_size=10)
    throughput.arrived(32, 1.0, 0.0)
    throughput.arrived(64, 2.0, 0.0)
    assert throughput.values() == throughput.values() != {}


@pytest.mark.parametrize(
    ("flops", "hardware", "peak", "names"),
    [(None, None, None, set()), (1e9, 1e9, None, {"flop_per_s"}), (None, 1e9, 1e12, {"hfu"})],
)
def test_flops_mfu_and_hfu_are_left_out_if_unknown(flops, hardware, peak, names):
    throughput = Throughput(1, lambda wait: flops, hardware, peak)
    throughput.arrived(0, 0.0, 0.0)
    throughput.arrived(1, 1.0, 0.0)
    assert set(throughput.values()) == {"examples_per_s", "step_time_s", "data_wait"} | names


def test_only_rates_of_an_interval_wait_for_the_flops():
    called = []
    throughput = Throughput(1, called.append)
    throughput.arrived(0, 0.0, 0.0)
    assert throughput.values() == {} and not called
    throughput.arrived(1, 1.0, 0.0)
    assert throughput.values() and throughput.total()
    assert called == [True, False]


def test_arrivals_at_the_same_time_are_merged_with_the_next():
    throughput = Throughput(batch_size=1)
    throughput.arrived(0, 1.0, 0.0)
    throughput.arrived(1, 1.0, 0.0)
    assert throughput.values() == {}
    throughput.arrived(2, 2.0, 0.0)
    assert throughput.values()["step_time_s"] == pytest.approx(0.5)


def test_times_of_stages_are_those_of_a_step_of_the_interval():
    throughput = Throughput(batch_size=32)
    throughput.arrived(0, 0.0, 0.0, (1.0, 2.0, 0.0, 0.0, 0.0))
    throughput.arrived(10, 1.0, 0.0, (1.5, 4.0, 0.0, 0.0, 0.1))
    times = {name: value for name, value in throughput.values().items() if name.startswith("data_")}
    assert times == pytest.approx(
        {"data_wait": 0.0, "data_read_s": 0.05, "data_decode_s": 0.2, "data_transfer_s": 0.01}
    )


def test_count_is_known_once_it_has_ended():
    release, said = threading.Event(), []

    def count():
        assert release.wait(60)
        return 3e9

    flops = FlopsCount(count, said.append)
    flops.start()
    assert flops(wait=False) is None
    release.set()
    assert flops(wait=True) == flops(wait=False) == 3e9 and not said


def test_abandoned_count_is_left_out_at_once():
    release, values = threading.Event(), []
    flops = FlopsCount(lambda: 3e9 if release.wait(60) else 0.0, print)
    flops.start()
    waiting = threading.Thread(target=lambda: values.append(flops(wait=True)))
    waiting.start()
    flops.close(wait=False)
    waiting.join(60)
    assert values == [None]
    release.set()
    flops.close(wait=True)
    assert flops(wait=False) == 3e9


def test_count_that_exits_is_left_out():
    said = []
    flops = FlopsCount(lambda: sys.exit(3), said.append)
    flops.start()
    assert flops(wait=True) is None
    assert "sys.exit(3)" in said[0]


def test_failed_count_is_reported_once_in_one_line():
    said = []

    def count():
        raise ValueError("the loss needs 8 devices\n\nand 20 lines of JAX")

    flops = FlopsCount(count, said.append)
    flops.start()
    assert flops(wait=True) is flops(wait=True) is flops(wait=False) is None
    [text] = said
    start = (
        "flop_per_s and mfu are left out: tracing the loss for one device failed: ValueError: the loss needs 8 devices"
    )
    assert text.startswith(start) and "JAX" not in text


def reading(wait=0.12, decode=1.42, read=0.5, readers=2, cores=4, wall_s=1.0):
    seconds = {"read": read, "decode": decode, "collate": 0.08, "transfer": 5.0}
    return Reading(wait, seconds, wall_s, readers, cores)


def test_sentence_names_the_slowest_stage_of_the_readers_and_what_would_help():
    assert reading().sentence() == (
        "waits for data 12% of the time: decode takes 71% of the readers' time; more workers would help (data.workers)"
    )
    assert reading().shares_text() == "decode 71%, read 25%, collate 4%"


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({"cores": 2}, "worker processes (data.workers=auto), a cheaper decode or more cores than 2 would help"),
        ({"cores": 2, "read": 9.0, "wall_s": 6.0}, "more data.threads or faster storage would help"),
        ({"wall_s": 4.0}, "the readers are busy 25% of the time; a larger data.prefetch would help"),
    ],
)
def test_advice_fits_the_bottleneck(values, advice):
    assert reading(**values).sentence().endswith(f"; {advice}")


def test_no_sentence_without_a_wait_or_without_times():
    assert reading(wait=0.009).sentence() == ""
    assert Reading(0.5, {}, 1.0, 2, 4).sentence() == ""
    assert Reading(0.5, {}, 1.0, 2, 4).shares_text() == ""


def test_reading_of_rates_is_that_of_a_step():
    found = Reading.of({"data_wait": 0.5, "step_time_s": 0.1, "data_decode_s": 0.08}, 3)
    assert (found.wait, found.wall_s, found.readers, found.seconds["decode"]) == (0.5, 0.1, 3, 0.08)
