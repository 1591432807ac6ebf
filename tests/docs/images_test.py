"""The pictures of the README: what the committed files show is what their scripts draw."""

import re
import runpy
import sys
import xml.etree.ElementTree as ET

import pytest

from tests import runs
from tests.docs import pages

IMAGES = pages.ROOT / "docs" / "images"
ENGINE = pages.ROOT / "engine"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(IMAGES)  # scripts of pictures share the module `terminal`


def script(name: str) -> dict:
    return runpy.run_path(str(IMAGES / f"{name}.py"))


def draw(name: str, *arguments: str) -> None:
    """Runs a script as a program, whose runs are forks and compile in less time."""
    words = [str(IMAGES / f"{name}.py"), *arguments]
    program = f"import runpy, sys; sys.argv[:] = {words!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = runs.run([sys.executable, "-c", program], env=runs.environment(PYTHONPATH=str(IMAGES), **runs.COMPILING))
    assert done.returncode == 0, done.stderr


def text_of(svg: str) -> str:
    """All text of a picture, with plain spaces."""
    return " ".join("".join(ET.fromstring(svg).itertext()).replace("\xa0", " ").split())


def test_architecture_picture_is_the_output_of_its_script():
    assert (IMAGES / "architecture.svg").read_text() == script("architecture")["picture"]() + "\n"


def test_table_of_packages_is_the_output_of_its_script():
    page = (pages.ROOT / "docs/architecture.md").read_text()
    assert page == script("architecture")["page"](page)


def test_badges_are_the_output_of_their_script():
    for name, badge in script("badges")["badges"]().items():
        assert (IMAGES / name).read_text() == badge


def test_architecture_picture_names_every_package():
    shown = text_of((IMAGES / "architecture.svg").read_text())
    assert [path.parent.name for path in ENGINE.glob("*/__init__.py") if f"{path.parent.name}/" not in shown] == []


def test_architecture_picture_has_colours_for_both_schemes():
    style = script("architecture")["STYLE"]
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    coloured = re.findall(r"^  \.(\w+) \{.*(?:fill|stroke): #", light, re.MULTILINE)
    assert coloured
    assert [kind for kind in coloured if f".{kind}" not in dark] == []


def test_texts_of_the_architecture_picture_fit_into_their_boxes():
    path = pytest.importorskip("matplotlib.textpath")
    fonts = pytest.importorskip("matplotlib.font_manager")
    sizes = {"name": ("DejaVu Sans Mono", 15, 700), "note": ("DejaVu Sans", 12, 400), "title": ("DejaVu Sans", 13, 700)}
    tree = ET.fromstring((IMAGES / "architecture.svg").read_text())
    boxes = [[float(box.attrib[name]) for name in ("x", "y", "width", "height")] for box in tree.iter(f"{SVG}rect")]
    for text in tree.iter(f"{SVG}text"):
        family, size, weight = sizes[text.attrib["class"]]
        font = fonts.FontProperties(family=family, weight=weight)
        width = path.TextPath((0, 0), text.text, size=size, prop=font).get_extents().width
        x, y = (float(text.attrib[name]) for name in ("x", "y"))
        inside = [box for box in boxes if box[0] <= x <= box[0] + box[2] and box[1] <= y <= box[1] + box[3]]
        if inside:
            left, top, wide, high = min(inside, key=lambda box: box[2])
            assert width <= wide - 8 if text.attrib["text-anchor"] == "middle" else x + width <= left + wide, text.text
            assert top + size <= y + 4 and y <= top + high - 4, text.text


def test_training_picture_shows_the_command_and_its_result():
    shown = text_of((IMAGES / "training.svg").read_text())
    assert " ".join(script("training")["COMMAND"]) in shown
    assert "digits: done at step 674/674" in shown


def test_pictures_of_scenes_exist_and_need_their_runs(tmp_path, monkeypatch, capsys):
    scenes = script("scenes")
    assert [name for name in scenes["PICTURES"] if not (IMAGES / f"{name}.png").exists()] == []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["scenes.py"])
    scenes["main"]()
    left_out = capsys.readouterr().out.splitlines()
    assert left_out[0].startswith("forecast: left out, since there is no runs/eth_ucy/zara2-k20-seed0")
    assert len(left_out) == len(scenes["PICTURES"])


def test_pictures_of_scenes_are_composed_side_by_side(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, size in {"a": (200, 100), "b": (100, 200)}.items():
        image.new("RGBA", size, (0, 0, 0, 0)).save(tmp_path / f"{name}.png")
    script("scenes")["compose"]([tmp_path / "a.png", tmp_path / "b.png"], 1000, tmp_path / "both.png")
    both = image.open(tmp_path / "both.png")
    assert both.size == (200 + 24 + 50, 100)
    assert both.convert("RGBA").getpixel((5, 5))[3] == 0


def test_pictures_load_nothing_from_the_network():
    for file in IMAGES.glob("*.svg"):
        assert "url(http" not in file.read_text() and "href" not in file.read_text(), file.name


def test_training_picture_can_be_drawn_again(tmp_path):
    command = ["convoy", "train", "--config=configs.digits", "--config.train.total=2 steps"]
    draw("training", f"--output={tmp_path / 'new.svg'}", *command)
    shown = text_of((tmp_path / "new.svg").read_text())
    assert "digits: done at step 2/2" in shown
    assert shown.count("2/2") == 2  # one in the progress bar, as the terminal shows it at the end


@pytest.mark.slow
def test_film_of_a_killed_run_can_be_drawn_again(tmp_path):
    film = tmp_path / "new.svg"
    draw("resume", f"--output={film}")
    assert_shows_a_resume(film.read_text())


def test_film_of_the_readme_shows_a_resume():
    assert_shows_a_resume((IMAGES / "resume.svg").read_text())


def assert_shows_a_resume(svg: str) -> None:
    shown = text_of(svg)
    before, killed, after = shown.partition("Killed")
    assert killed and "done at step" not in before
    assert re.search(r"resuming from step \d+", after) and "digits: done at step 674/674" in after
    [first, second] = re.findall(r"([0-9a-f]{64})  ?(?:killed|whole)\.safetensors", after)
    assert first == second
