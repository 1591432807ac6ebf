import pytest

from engine.base.errors import ConfigError
from engine.config.schema import Evaluation
from engine.loop.evaluations import build_evaluations, check_watched
from engine.metrics.results import scalars
from tests import zoo
from tests.measuring import Measure


def test_best_may_be_any_number_of_a_metric():
    program = zoo.program(Measure())
    [subject] = build_evaluations(
        {"heldout": Evaluation()}, {"heldout": zoo.source(37, seed=5)}, program.evaluation, 16
    )
    for name in ("heldout/ap", "heldout/ap/0.5", "heldout/ap/0-1", "heldout/confusion/iou/b", "heldout/error/p99"):
        check_watched({name: "checkpoint.best"}, [subject], [])
    for name in ("heldout/ap/0.7", "heldout/confusion", "heldout/roc/curve", "heldout/found/image", "other/ap"):
        with pytest.raises(ConfigError, match="no evaluation has this metric"):
            check_watched({name: "checkpoint.best"}, [subject], [])
    assert not subject.is_known({"heldout/ap": 0.5})
    assert subject.is_known(scalars(subject.run(program.init()) or {}))
