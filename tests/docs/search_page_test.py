"""The space of the page "Search" is one that the config allows and that a grid can enumerate."""

from engine.config import load
from engine.sweeps.domains import FUNCTIONS
from engine.sweeps.space import Space, overrides
from tests.docs import pages

PAGE = pages.ROOT / "docs" / "search.md"


def test_space_of_the_page_has_a_grid_of_settings_of_its_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    pages.write_files(PAGE, tmp_path)
    points = Space.parse("space.py", {}).grid()
    assert len(points) == 2 + 2 * 2  # two rates, and two decays for each of them with Lion
    for point in points:
        load("convoy_zoo.configs.digits", overrides(point))


def test_page_lists_every_domain():
    text = PAGE.read_text()
    assert [name for name in FUNCTIONS if f"| `{name}(" not in text] == []
