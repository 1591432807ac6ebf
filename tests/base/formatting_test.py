import pytest

from engine.base import formatting
from engine.base.formatting import aligned, duration, number, pairs, size_text, table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0421349, "0.04213"),
        (98.5, "98.5"),
        (1.2e-05, "1.2e-05"),
        (31250, "31,250"),
        (31250.4, "31,250"),
        (2.0, "2"),
        (-3.25, "-3.25"),
        (6.1e14, "6.1e+14"),
        (float("nan"), "nan"),
        ("NaN", "NaN"),
        (True, "True"),
        (None, "None"),
    ],
)
def test_number_has_four_significant_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4249, "0.42 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7620, "2 h 07 min"),
        (90000, "1 d 01 h"),
    ],
)
def test_duration_uses_two_units_at_most(seconds, text):
    assert duration(seconds) == text


def test_pairs_keep_their_order():
    assert pairs({"loss": 0.42131, "accuracy": 0.9}) == "loss 0.4213  accuracy 0.9"


def test_few_values_are_a_line_and_many_a_table():
    assert table({"loss": 0.5, "accuracy": 1.0}) == "loss 0.5  accuracy 1"
    text = table({f"heldout/ap/{i}": i / 7 for i in range(40)})
    lines = text.splitlines()
    assert lines[0] == ""
    assert lines[1].split()[::2] == ["heldout/ap/0", "heldout/ap/10", "heldout/ap/20", "heldout/ap/30"]
    assert lines[1].split()[1::2] == ["0", "1.429", "2.857", "4.286"]
    assert max(map(len, lines)) <= 102
    assert len({len(line) for line in lines[1:11]}) == 1  # aligned
    lines = table({f"heldout/{i}": i / 7 for i in range(1000)}).splitlines()
    assert len(lines) == 32
    assert lines[-1].startswith("  and ")
    shown = sum(line.count("heldout/") for line in lines)
    assert lines[-1] == f"  and {1000 - shown} more in metrics.jsonl"


def test_progress_separates_thousands():
    assert formatting.progress(1350, 1500) == "1,350/1,500"


def test_size_text_uses_binary_units():
    assert [size_text(n) for n in (12, 1536, 3 * 2**20, 5 * 2**30)] == ["12 B", "1.5 KiB", "3.0 MiB", "5.0 GiB"]


def test_cell_cannot_break_a_line_or_change_the_terminal():
    assert aligned([("a\nb\x1b[31m", "é"), ("c", "d")]) == [r"a\nb\x1b[31m  é", r"c             d"]


def test_cells_are_aligned_also_in_rows_with_fewer_cells():
    rows = [("a", "bb", "c"), ("aaa", "b")]
    assert aligned(rows) == ["a    bb  c", "aaa  b"]
    assert aligned(rows, right=True) == ["  a  bb  c", "aaa   b"]
    assert aligned([]) == []


def test_line_shows_what_was_named_losses_and_short_names_first():
    values = {**{f"a/by/{name}": 1.0 for name in "bcdef"}, "a/accuracy": 0.5, "a/loss": 2.0, "a/by/z": 3.0}
    assert formatting.line(values, {"a/by/z"}) == (
        "a/by/b 1  a/by/c 1  a/accuracy 0.5  a/loss 2  a/by/z 3  and 3 more in metrics.jsonl"
    )
    assert formatting.line({"a": 1.0}) == "a 1"
