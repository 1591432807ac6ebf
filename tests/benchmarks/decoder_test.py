import re

import pytest

from tests.benchmarks.processes import benchmark


@pytest.mark.multiprocess
def test_the_engine_has_the_losses_of_the_loop_by_hand():
    output = benchmark("decoder", "--turns", "1", "--steps", "2")
    ratio = re.search(r"engine / plain JAX \d+\.\d+ .* losses differ by at most (\S+)", output)
    assert ratio, output
    assert float(ratio[1]) <= 1e-5
