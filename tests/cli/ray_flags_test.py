import sys

import pytest

from engine.base.errors import ConfigError
from engine.cli import ray_flags
from engine.cli.common import Parser
from engine.cli.main import main


def arguments(*words):
    parser = Parser()
    parser.add_argument("--processes", type=int)
    ray_flags.add_flags(parser)
    return parser.parse_args(words)


def test_jobs_run_on_this_machine_by_default():
    assert ray_flags.ray_pool(arguments()) is None
    with pytest.raises(ConfigError, match="--address is that of a Ray cluster"):
        ray_flags.ray_pool(arguments("--address=localhost:6379"))


def test_missing_ray_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    for action in (["write", "--out=a.arrayrecord"], ["check"]):
        assert main(["data", *action, "--config=configs.digits", "--on=ray"]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert "Ray is not installed: pip install" in line
