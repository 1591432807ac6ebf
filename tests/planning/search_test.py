import dataclasses

from engine.planning import search, table
from tests.planning import tiny


def test_ranking_is_the_fastest_that_fits_and_names_changes_where_nothing_does():
    program, config = tiny.program(), tiny.config()
    ranking = search.rank(program, config, tiny.machine("h100:1x8"))
    assert ranking.fitting and ranking.examined >= len(ranking.fitting)
    best = ranking.fitting[0]
    assert best.step_s <= 1.02 * min(c.step_s for c in ranking.fitting)
    lines = table.table(ranking.model, search.different(ranking.fitting, 4), 1e12)
    assert len(lines) >= 2 and "MFU" in lines[0]
    small = dataclasses.replace(tiny.machine("h100:1x8"), memory=2000)
    refused = search.rank(program, config, small)
    assert not refused.fitting and refused.nearest is not None
    assert any("GiB of memory or more" in text for text in search.changes(refused, program, config))
