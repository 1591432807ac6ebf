import dataclasses
import pickle
from pathlib import Path

import pytest

from engine.sweeps.cluster_workers import ClusterWorkers
from engine.sweeps.local import LocalWorkers
from engine.sweeps.workers import Job, Workers
from tests.sweeps.scripted import ScriptedWorkers


@pytest.mark.parametrize("kind", [LocalWorkers, ClusterWorkers, ScriptedWorkers])
def test_each_kind_has_the_methods_of_the_protocol(kind):
    methods = [name for name in vars(Workers) if not name.startswith("_") and callable(getattr(Workers, name))]
    assert sorted(methods) == ["close", "ended", "start", "stop"]
    assert all(callable(getattr(kind, name)) for name in methods)
    assert isinstance(kind.outlive_driver, bool) and kind.poll_s >= 0


def test_job_is_a_value_that_can_be_sent_to_another_process():
    job = Job("trial-0003", ["train"], Path("trials/0003"))
    assert pickle.loads(pickle.dumps(job)) == job
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
