from engine.planning import table
from tests.planning import tiny


def test_candidate_sets_only_what_differs_from_the_config():
    text = table.command(tiny.candidate(fsdp=8, remat="full"), {"train.remat": "none", "train.accumulate": 1})
    assert "--config.mesh.fsdp=8" in text and "--config.train.remat=full" in text
    assert "accumulate" not in text
