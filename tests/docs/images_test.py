"""The pictures of the README: what the committed files show is what their scripts draw."""

import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from tests.docs import pages

IMAGES = pages.ROOT / "docs" / "images"
ENGINE = pages.ROOT / "engine"


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(IMAGES)  # scripts of pictures share the module `terminal`


def script(name: str) -> dict:
    return runpy.run_path(str(IMAGES / f"{name}.py"))


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


def test_training_picture_shows_the_command_and_its_result():
    shown = text_of((IMAGES / "training.svg").read_text())
    assert " ".join(script("training")["COMMAND"]) in shown
    assert "digits: done at step 674 of 674" in shown


def test_pictures_load_nothing_from_the_network():
    for file in IMAGES.glob("*.svg"):
        assert "url(http" not in file.read_text() and "href" not in file.read_text(), file.name


def test_training_picture_can_be_drawn_again(tmp_path):
    command = ["convoy", "train", "--config=configs.digits", "--config.train.total=2 steps"]
    subprocess.run(
        [sys.executable, IMAGES / "training.py", f"--output={tmp_path / 'new.svg'}", *command], check=True, timeout=300
    )
    shown = text_of((tmp_path / "new.svg").read_text())
    assert "digits: done at step 2 of 2" in shown
    assert shown.count("2/2") == 1  # the progress bar, as the terminal shows it at the end


@pytest.mark.slow
def test_film_of_a_killed_run_can_be_drawn_again(tmp_path):
    film = tmp_path / "new.svg"
    subprocess.run([sys.executable, IMAGES / "resume.py", f"--output={film}"], check=True, timeout=300)
    assert_shows_a_resume(film.read_text())


def test_film_of_the_readme_shows_a_resume():
    assert_shows_a_resume((IMAGES / "resume.svg").read_text())


def assert_shows_a_resume(svg: str) -> None:
    shown = text_of(svg)
    before, killed, after = shown.partition("Killed")
    assert killed and "done at step" not in before
    assert re.search(r"resuming from step \d+", after) and "digits: done at step 674 of 674" in after
    [first, second] = re.findall(r"([0-9a-f]{64})  ?(?:killed|whole)\.safetensors", after)
    assert first == second
