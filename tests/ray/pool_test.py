"""Jobs on real Ray clusters of three nodes on this machine."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from engine.base.errors import ConfigError, DataError, FieldError
from engine.cluster.exit_status import ExitStatus
from engine.datasets.check import check_dataset
from engine.datasets.pool import ProcessError, in_order
from engine.datasets.write import write_dataset
from engine.ray import pool
from engine.ray.connection import connect
from engine.ray.pool import RayPool
from engine.readers.array_record import ArrayRecordSource
from tests import runs
from tests.datasets import scans
from tests.datasets.scans import Scans, content
from tests.ray.clusters import cluster

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.filterwarnings("ignore:.*fork"),  # of JAX, if another test has imported it
]

HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 250,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}
"""How soon the head node notices that another one is cut off: in about 3 s, instead of a minute."""


class Double:
    """Doubles integers, or fails."""

    def __init__(self):
        self.source = Scans()

    def __call__(self, job, report):
        if job == "config":
            raise FieldError("data.x", "unknown", "Remove it.")
        return scans.work(job, report)


class Again(Double):
    """A job whose first worker ends after a report; the next one does it."""

    def __init__(self, folder: Path):
        self.source, self.folder = Scans(), folder

    def __call__(self, job, report):
        report(2)
        if job == 1 and not (marker := self.folder / "ended").exists():
            marker.touch()
            time.sleep(2 * pool.POLL_S)  # the command asks for the progress
            os._exit(3)
        report(1)
        return job


@pytest.fixture(scope="module")
def nodes():
    """A cluster of three nodes: the head node without CPUs, and two with one CPU each."""
    with cluster(num_cpus=0, _system_config=HEALTH) as found:
        ray = connect(found.address)
        with pytest.raises(ProcessError, match="no worker of the Ray cluster has started within 1 s: 0 of its 0 CPUs"):
            collect(Double(), [1], start_s=1.0)
        found.add_node(num_cpus=1)
        found.add_node(num_cpus=1)
        yield found
        ray.shutdown()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The scans in four shards, written by one process of this machine."""
    out = tmp_path_factory.mktemp("written") / "scans.arrayrecord"
    write_dataset(Scans(), out, shards=4, processes=1)
    return out


def collect(function, jobs, **settings):
    place, reported = RayPool(**settings), []
    found = list(in_order(place.run(function, jobs, place.count(len(jobs)), reported.append)))
    return found, sum(reported)


def wait_until(condition):
    end = time.monotonic() + runs.limit(120)
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def test_results_and_progress_do_not_depend_on_the_number_of_workers_nor_on_lost_ones(nodes, tmp_path):
    assert RayPool().count(100) == 2 and RayPool().count(100, 1) == 1 and RayPool(workers=3).count(2) == 2
    # The third worker waits for a CPU that is never free, and one of the others ends.
    assert collect(Again(tmp_path), range(7), workers=3) == (list(range(7)), 3 * 7)
    assert (tmp_path / "ended").exists()
    with pytest.raises(ConfigError, match="processes = 0: allowed is a whole number from 1 to"):
        RayPool(workers=0).count(3)


@pytest.mark.parametrize(
    ("job", "error", "text", "code"),
    [
        ("kill", ProcessError, r"3 workers of the Ray cluster ended, .* did the same job \(kill\)", ExitStatus.RETRY),
        ("config", ConfigError, "data.x: unknown. Remove it.", ExitStatus.USER_ERROR),
    ],
)
def test_first_error_of_a_job_ends_all_workers(nodes, job, error, text, code):
    with pytest.raises(error, match=text) as raised:
        collect(Double(), [1, job, *range(50)], workers=1)
    assert raised.value.exit_code == code


def test_classes_that_workers_cannot_import_are_sent_and_others_are_reported(nodes):
    class Local(Double):
        """A class such as one of a script."""

    assert collect(Local(), [1, 2], workers=1) == ([2, 4], 2)
    function = Double()
    function.source.lock = threading.Lock()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(DataError, match=r"Scans cannot be sent to other processes"):
        collect(function, [1])


def test_shards_of_lost_nodes_are_written_again(nodes, written, tmp_path):
    """One node is killed. The other one is cut off, and its worker goes on."""
    gate, out = tmp_path / "gate", tmp_path / "data" / "scans.arrayrecord"
    gate.mkdir()
    source = Scans(gate=str(gate), wait_from=40)
    done = []
    call = threading.Thread(target=lambda: done.append(write_dataset(source, out, shards=4, processes=RayPool())))
    call.start()
    lost = {}
    worker, raylet = "", 0
    try:
        wait_until(lambda: len(list(gate.iterdir())) == 2)  # both workers wait, in shards 2 and 3
        for worker, how in zip(
            sorted(path.name for path in gate.iterdir()), (signal.SIGKILL, signal.SIGSTOP), strict=True
        ):
            raylet = int(Path(f"/proc/{worker}/stat").read_text().rpartition(") ")[2].split()[1])
            [lost[how]] = [node for node in nodes.list_all_nodes() if raylet in pids(node)]
            nodes.add_node(num_cpus=1)
            os.kill(raylet, how)
        wait_until(lambda: not any(map(is_alive, lost.values())))
        wait_until(lambda: len(list(gate.iterdir())) == 4)  # new workers have begun the shards
        assert Path(f"/proc/{worker}").exists()
    finally:
        (gate / "open").touch()
        call.join(runs.limit(120))
        if raylet:
            os.kill(raylet, signal.SIGCONT)
    for node in lost.values():
        nodes.remove_node(node, allow_graceful=False)
    assert [found.examples for found in done] == [60]
    assert content(out.parent) == content(written.parent)


def pids(node):
    return [info.process.pid for infos in node.all_processes.values() for info in infos]


def is_alive(node):
    return any(found["Alive"] and found["NodeID"] == node.node_id for found in connect().nodes())


def test_report_of_a_check_is_that_of_one_process(nodes, written):
    source, done = ArrayRecordSource(str(written)), []
    here = check_dataset(source, processes=1)
    found = check_dataset(source, processes=RayPool(workers=2), on_progress=lambda count, total: done.append(count))
    assert without_times(found) == without_times(here) and done[-1] == 60


def without_times(report):
    found = json.loads(report.to_json())
    for name in ("throughput", "advice"):
        del found[name]
    return found
