"""The network between two hosts is interrupted: shortly, and for good."""

import contextlib
import time
from typing import Any

import pytest

from tests import runs
from tests.faults import harness
from tests.two_hosts import two_hosts

pytestmark = [pytest.mark.faults, pytest.mark.multiprocess, pytest.mark.slow]


@pytest.mark.case("the network is cut")
def test_short_cut_is_tolerated_and_a_long_cut_ends_both_processes_with_a_sentence(tmp_path, add_row):
    run = tmp_path / "run"
    config = harness.config(tmp_path / "config", pause=0.05, mesh__fsdp=2, train__total="100000 steps")
    with two_hosts() as hosts, contextlib.ExitStack() as stack:
        jobs: list[harness.Job] = []
        for i in range(2):
            variables: dict[str, Any] = hosts.variables(i)
            job = harness.Job("train", config, f"--workdir={run}", prefix=hosts.prefix(i), **variables)
            jobs.append(stack.enter_context(job))
        jobs[0].until_step(run, 8)
        hosts.cut()
        time.sleep(2)
        hosts.heal()
        jobs[0].until_step(run, max(harness.losses(run)) + 20)
        assert jobs[1].process.poll() is None
        hosts.cut()
        begin = time.monotonic()
        codes = [job.end() for job in reversed(jobs)]
        detected = time.monotonic() - begin
        outputs = [job.output for job in jobs]
    assert codes == [42, 42], outputs
    ends = [output.splitlines()[-1] for output in outputs]
    assert ends[0].startswith("LostPeer: process 1 is gone: no heartbeat for 12 s."), outputs
    assert ends[1].startswith("LostPeer: process 0, which coordinates the processes, has not answered for 5 s"), outputs
    assert not any("stack trace" in output or "Traceback" in output for output in outputs), outputs
    assert (runs.status(run)["state"], runs.status(run)["exit_code"]) == ("failed", 42)
    add_row("a cut for good; 2 s of it are tolerated", detected_s=detected, code=42)
