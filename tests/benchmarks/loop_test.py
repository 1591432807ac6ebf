import re

import pytest

from tests.benchmarks.processes import benchmark


@pytest.mark.multiprocess
def test_it_names_the_machine_and_prints_a_spread():
    output = benchmark("loop", "--turns", "2", "--steps", "5", "--only", "digits")
    assert " cores, load " in output.splitlines()[0]
    assert re.search(r"digits .*engine / bare \d+\.\d+ \(\d+\.\d+-\d+\.\d+\)", output), output
