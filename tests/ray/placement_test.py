"""What a job asks of a cluster. launch_test.py places jobs on real ones."""

import pytest

from engine.base.errors import ConfigError
from engine.ray.placement import RayJob, room

NODES = [
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
    {"Alive": True, "Resources": {"CPU": 3.0, "TPU": 4.0}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 64.0}},
]


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (RayJob(2), 11),
        (RayJob(2, spread=True), 2),
        (RayJob(2, cpus=2), 5),
        (RayJob(2, gpus=1), 2),
        (RayJob(2, gpus=1, spread=True), 1),
        (RayJob(2, resources={"TPU": 4}), 1),
        (RayJob(2, resources={"other": 1}), 0),
    ],
)
def test_room_counts_the_processes_that_fit_on_nodes_that_are_alive(job, expected):
    assert room(NODES, job) == expected


def test_text_names_what_each_process_needs():
    assert RayJob(4, gpus=8, spread=True).text == "4 x CPU: 1, GPU: 8, each on a node of its own"
    assert RayJob(1, cpus=0, resources={"TPU": 4}).text == "1 x TPU: 4"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"processes": 0}, "--processes = 0: allowed is a whole number from 1."),
        ({"processes": 1, "cpus": -1}, "--cpus = -1: allowed is a number from 0."),
        ({"processes": 1, "resources": {"CPU": 1}}, "--resource CPU: is a resource of Ray's own."),
    ],
)
def test_wrong_numbers_are_config_errors(settings, sentence):
    with pytest.raises(ConfigError) as raised:
        RayJob(**settings)
    assert str(raised.value).startswith(sentence)
