import re

import pytest

from engine.base.errors import ConfigError
from engine.config.hardware import DEVICES
from engine.parallel import targets
from engine.parallel.targets import DIMENSIONS, KINDS, parse


@pytest.mark.parametrize(
    ("text", "platform", "shape", "slices", "count"),
    [
        ("v5p:4x4x8", "tpu", (4, 4, 8), 1, 128),
        ("v5e:16x16*2", "tpu", (16, 16), 2, 512),
        ("tpu7x:2x2x1", "tpu", (2, 2, 1), 1, 8),  # two devices a chip
        ("h100:32x8", "gpu", (32, 8), 32, 256),
        ("A100-40:1x4", "gpu", (1, 4), 1, 4),
    ],
)
def test_targets_give_devices_and_slices(text, platform, shape, slices, count):
    target = parse(text)
    assert target is not None
    assert (target.platform, target.shape, target.slices) == (platform, shape, slices)
    assert target.count == count


def test_local_is_no_target():
    assert parse("local") is None


def test_every_target_has_a_row_in_the_hardware_table():
    assert set(KINDS.values()) <= set(DEVICES)
    assert set(DIMENSIONS) <= set(KINDS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("v5p:4x4", "found '4x4' after v5p. Write v5p:4x4x4, or with slices *2"),
        ("h100:256", "found '256' after h100. Write h100:HOSTSxGPUS"),
        ("h100:4x8*2", "found '4x8*2' after h100"),
        ("v5e:3x5", "TPU v5e has no topology 3x5. Dimensions are two equal powers of 2, or one twice the other"),
        ("v5p:2x2x8", "TPU v5p has no topology 2x2x8. Dimensions are multiples of 4, or a part of 4x4x4"),
        ("v5e:4x0", "found '4x0' after v5e"),
        ("v5e", "found '' after v5e"),
        ("h10:1x8", "there is no hardware 'h10'. Did you mean h100?"),
    ],
)
def test_texts_that_are_no_target_name_the_forms(text, problem):
    with pytest.raises(ConfigError, match=re.escape(f"--hardware={text}: {problem}")) as raised:
        parse(text)
    assert "v5e:16x16*2" in str(raised.value) or "Nearest: v5" in str(raised.value)


def test_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setitem(targets.PACKAGES, "tpu", ("libtpu_of_nowhere",))
    with pytest.raises(ConfigError, match=r"needs libtpu_of_nowhere\. Install the extra aot"):
        targets.devices("v5e:4x4")


def test_target_with_too_many_devices_is_refused():
    with pytest.raises(ConfigError, match=r"found 799,999,992 devices. Allowed are at most 1,048,576"):
        parse("h100:99999999x8")
