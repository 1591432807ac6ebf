"""Pictures in a report: the newest figures of each evaluation, within a bound."""

import base64

from engine.report.images import Budget, read_pictures
from tests.report.made import write_figure


def test_newest_figures_of_an_evaluation_and_other_images_are_embedded(tmp_path):
    write_figure(tmp_path / "heldout/900/0-example-1.png")
    write_figure(tmp_path / "heldout/1000/1-example-5.png")
    write_figure(tmp_path / "heldout/1000/0-example-12.png")
    write_figure(tmp_path / "lights/map.png")
    found = read_pictures(tmp_path, Budget(10**6))
    assert list(found.figures["heldout"]) == [12, 5]  # in the order of the ranks
    assert found.steps == {"heldout": 1000}
    assert [image["name"] for image in found.others] == ["lights/map.png"]
    content = base64.b64decode(found.figures["heldout"][5].removeprefix("data:image/png;base64,"))
    assert content == (tmp_path / "heldout/1000/1-example-5.png").read_bytes()


def test_images_over_the_bound_are_counted(tmp_path):
    for rank in range(3):
        write_figure(tmp_path / f"heldout/1/{rank}-example-{rank}.png")
    size = (tmp_path / "heldout/1/0-example-0.png").stat().st_size
    budget = Budget(2 * size)
    assert len(read_pictures(tmp_path, budget).figures["heldout"]) == 2
    assert (budget.left, budget.left_out) == (0, 1)


def test_file_that_is_no_png_is_left_out(tmp_path):
    (tmp_path / "a.png").write_text("<script>alert(1)</script>")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert read_pictures(tmp_path, Budget(10**6)).others == []
    assert read_pictures(tmp_path / "nowhere", Budget(1)).figures == {}
