"""The commands of the page "Ray" work on a cluster of one node."""

import shlex

import pytest

from engine.ray.connection import ADDRESS
from tests import runs
from tests.docs import pages
from tests.ray.clusters import cluster

pytestmark = pytest.mark.multiprocess

PAGE = pages.ROOT / "docs/ray.md"


def test_commands_of_the_page_succeed(tmp_path):
    with cluster(num_cpus=2) as found:
        env = runs.environment(**{ADDRESS: found.address}, **runs.COMPILING)
        for command in pages.commands(PAGE):
            words = runs.command(*shlex.split(command)[1:])
            done = runs.run(words, cwd=tmp_path, env=env)
            assert done.returncode == pages.exit_code(command), f"{command}\n{done.stdout}\n{done.stderr}"
    assert runs.status(tmp_path / "runs/digits")["state"] == "done"
