import re

import pytest

from tests.benchmarks.processes import benchmark


@pytest.mark.multiprocess
def test_it_names_the_machine_and_prints_a_spread():
    output = benchmark("data_wait", "--turns", "2", "--steps", "60", "--only", "digits")
    assert " cores, load " in output.splitlines()[0]
    assert re.search(r"digits .*waiting \d+\.\d+ \(", output), output
