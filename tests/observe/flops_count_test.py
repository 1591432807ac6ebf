"""The model FLOPs are counted once, in a thread; a run that is asked to stop does not wait for it."""

import sys
import threading

from engine.observe.flops_count import FlopsCount


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
