import pytest

from engine.observe.reading import Reading


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
