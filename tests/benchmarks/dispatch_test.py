import re

import pytest

from tests.benchmarks.processes import benchmark


@pytest.mark.multiprocess
def test_it_names_the_machine_and_prints_a_spread():
    output = benchmark("dispatch", "--turns", "2", "--blocks", "1", "--only", "16-8-10")
    assert " cores, load " in output.splitlines()[0]
    assert re.search(r"K=32 \d+\.\d+ \(", output), output
