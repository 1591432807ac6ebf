import re

import pytest

from tests.benchmarks.processes import benchmark


@pytest.mark.multiprocess
def test_it_names_the_machine_and_prints_a_spread():
    output = benchmark("first_step", "--rounds", "1")
    assert " cores, load " in output.splitlines()[0]
    assert re.search(r"warm: engine \d+\.\d+ .* bare \d+\.\d+", output), output
