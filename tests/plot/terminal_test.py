from engine.plot.curves import Panel
from engine.plot.terminal import HEIGHT, chart

LINE = Panel("loss", {"train": {0: 1.0, 10: 0.0}, "val": {0: 0.0, 10: 0.0}})


def test_chart_in_ascii():
    assert chart(LINE, 31, color=False, ascii_only=True).splitlines() == [
        "loss",
        "     1 | *",
        "       |  **",
        "       |    **",
        "       |      **",
        "       |        **",
        "       |          **",
        "0.4545 |            **",
        "       |              **",
        "       |                **",
        "       |                  **",
        "       |                    **",
        "     0 | ++++++++++++++++++++++",
        "       | step 0              10",
        "         * train 0   + val 0",
    ]


def test_chart_in_braille_has_colours_of_its_curves():
    lines = chart(LINE, 40).splitlines()
    assert len(lines) == HEIGHT + 3
    assert "\033[34m\u2811" in lines[1] and "\033[33m" in lines[HEIGHT]
    assert max(len(line) for line in chart(LINE, 40, color=False).splitlines()) <= 40


def test_single_point_and_equal_values_are_drawn():
    text = chart(Panel("a", {"train": {5: 2.0}}), 20, color=False, ascii_only=True)
    assert text.count("*") == 2  # the point and its label
