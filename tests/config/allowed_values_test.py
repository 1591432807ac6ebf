import pytest

from engine.base.errors import FieldError
from engine.config.allowed_values import AUTO, AXIS_SIZE, CPU_DEVICES, REMAT, SCHEDULE, SIZE, WORKERS


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        (AXIS_SIZE, [-1, 1, 8], [0, -2, "8"]),
        (CPU_DEVICES, [AUTO, 1], [0, "many"]),
        (WORKERS, [AUTO, 0, 4], [-1, "many"]),
        (SIZE, [AUTO, 1], [0, "many"]),
        (SCHEDULE, ["cosine", "package.module.function"], ["cosin"]),
        (REMAT, ["none", "save:attention", "offload:a,b"], ["some", "save:"]),
    ],
)
def test_rule_allows_and_refuses(rule, allowed, refused):
    for value in allowed:
        rule.check(value, "train.x")
    for value in refused:
        with pytest.raises(FieldError, match=r"train\.x"):
            rule.check(value, "train.x")
