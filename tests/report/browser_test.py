"""Reports in headless Chromium, by mouse: zoom, hide a curve, choose a run, open a figure; on a phone; printed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import browser
from engine.experiments.comparison import WHOLE, Basis, Comparison, Difference, Variant
from engine.experiments.record import read_record
from engine.experiments.statistics import Interval
from engine.report.page import write_report
from engine.run.lineage import RECORD, Record
from tests.lineage.made import data, made_file, record, run, weights
from tests.report.made import full_run

LOSS = '[data-chart="loss"]'
EVIL = "<script>alert(1)<|script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report of one run, whose name is markup, and one of four runs."""
    found = tmp_path_factory.mktemp("reports")
    one, base = full_run(found / EVIL), run(found / "bases" / EVIL)
    record(one / RECORD, Record(kind="run", inputs=[weights(base, "init"), data(role=EVIL), weights(found / "gone")]))
    made_file(found / f"{EVIL}.npz", "predictions", [weights(base)])
    write_report([one], found / "one.html")
    settings = [{"train__seed": seed, "train__global_batch_size": size} for size in (8, 16) for seed in (0, 1)]
    runs = [full_run(found / f"run-{at}", shift=at / 10, **each) for at, each in enumerate(settings)]
    write_report(runs, found / "four.html")
    return found


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    if browser.program() is None:
        pytest.skip(f"no browser here: {', '.join(browser.PROGRAMS)}; apt-get install chromium, or set CHROMIUM")
    with browser.page(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(started: browser.Page) -> Iterator[browser.Page]:
    """A page that must report no problem in the test."""
    started.problems.clear()
    started.view(1280, 900)
    yield started
    assert started.problems == []


def show_loss(page: browser.Page) -> None:
    """Scrolls to the chart of the loss, which is drawn when it comes near the window."""
    page.place(LOSS)
    page.wait(f"document.querySelector({LOSS + ' canvas'!r})")


def zoom(page: browser.Page) -> list[float]:
    """The first and the last step that the chart of the loss shows."""
    return page.run(f"window.convoyReport.range({LOSS!r})")


@pytest.mark.multiprocess
def test_dragging_zooms_all_charts_and_the_button_resets(page, folder):
    page.open(folder / "one.html")
    show_loss(page)
    low, high = zoom(page)
    assert (low, high) == (1, 40)
    page.drag(f"{LOSS} .u-over", 0.25, 0.75)
    low, high = zoom(page)
    assert 9 < low < 13 and 28 < high < 32
    page.wait("document.querySelector('[data-chart=accuracy] canvas')")
    assert page.run("window.convoyReport.range('[data-chart=accuracy]')") == [low, high]
    page.click(".resetzoom")
    assert zoom(page) == [1, 40]


@pytest.mark.multiprocess
def test_legend_hides_a_curve(page, folder):
    page.open(folder / "one.html")
    show_loss(page)
    assert page.run(f"window.convoyReport.shown({LOSS!r})") == ["training", "heldout"]
    page.click(f"{LOSS} .legend button")
    assert page.run(f"window.convoyReport.shown({LOSS!r})") == ["heldout"]
    layers = '[data-chart="grad norm"]'
    page.place(layers)
    page.wait(f"document.querySelector({layers + ' canvas'!r})")
    assert page.run(f"window.convoyReport.shown({layers!r})") == ["whole model", "encoder"]


@pytest.mark.multiprocess
def test_figure_opens_large_with_its_score_and_the_next_one_by_key(page, folder):
    page.open(folder / "one.html")
    page.click(".figure")
    assert page.run("document.querySelector('dialog[open] h3').textContent") == "example 7 · loss 4.5"
    assert page.run("document.querySelector('dialog img').naturalWidth") == 32
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    assert page.run("document.querySelector('dialog h3').textContent") == "example 3 · loss 2.5"
    page.click("dialog .button:last-child")
    assert page.wait("document.querySelector('dialog') ? null : 'closed'")


@pytest.mark.multiprocess
def test_run_is_chosen_and_hidden_in_the_table(page, folder):
    page.open(folder / "four.html")
    show_loss(page)
    labels = ["global_batch_size=8 · training", "global_batch_size=8 · heldout"]
    labels += ["global_batch_size=16 · training", "global_batch_size=16 · heldout"]
    assert page.run(f"window.convoyReport.shown({LOSS!r})") == labels
    page.click('[data-run="run-2"] td:nth-child(3)')
    assert set(page.run("[...document.querySelectorAll('select.whose')].map(each => each.value)")) == {"2"}
    assert page.run("document.querySelector('path.strong').dataset.line") == "run-2"
    page.click('[data-run="run-3"] input')
    shown = page.wait(
        f"(found => found.includes('run-2 · training') ? found : null)(window.convoyReport.shown({LOSS!r}))"
    )
    assert shown == [*labels[:2], "run-2 · training", "run-2 · heldout"]


@pytest.mark.multiprocess
def test_comparison_shows_the_slices_of_the_metric_that_is_chosen(page, folder):
    interval = Interval(0.1, 0.05, 0.15, 0.01)
    shared = {"variant": 1, "evaluation": "heldout", "first": 0.8, "second": 0.9, "interval": interval, "examples": 99}
    results = [
        Difference(**shared, part=part, metric=metric, basis=Basis.EXAMPLES, adjusted_p=0.02, higher_is_better=True)
        for metric in ("accuracy", "ap")
        for part in (WHOLE, "night", "rain")
    ]
    runs = [folder / "run-0", folder / "run-2"]
    variants = [Variant(str(run), [read_record(run, str(run))], [0]) for run in runs]
    write_report(runs, folder / "compared.html", Comparison(variants=variants, results=results))
    page.open(folder / "compared.html")
    assert page.run("document.querySelector('h1').textContent") == "run-2 against run-0"
    listed = "[...document.querySelectorAll('#comparison tr[data-result]')].map(row => row.dataset.result)"
    whole, slices = ["heldout/accuracy", "heldout/ap"], ["heldout/night/{}", "heldout/rain/{}"]
    assert page.run(listed) == [*whole, *(name.format("accuracy") for name in slices)]
    page.run("document.querySelector('[data-slices]').value = 'heldout/ap'")
    page.run("document.querySelector('[data-slices]').dispatchEvent(new Event('change'))")
    assert page.run(listed) == [*whole, *(name.format("ap") for name in slices)]
    assert page.run("document.querySelector('#comparison .pill').textContent") == "better"


@pytest.mark.multiprocess
def test_report_fits_a_phone_in_both_schemes_and_can_be_printed(page, folder, tmp_path):
    for scheme, background in (("light", "rgb(245, 246, 248)"), ("dark", "rgb(14, 17, 22)")):
        for name in ("one.html", "four.html"):
            page.view(390, 800, scheme=scheme)
            page.open(folder / name)
            assert page.run("getComputedStyle(document.body).backgroundColor") == background
            assert page.run("document.documentElement.scrollWidth") == 390
    page.click("#theme")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)"
    page.click("#theme")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 22)"
    page.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.multiprocess
def test_lineage_is_a_nested_list_of_text(page, folder):
    page.open(folder / "one.html")
    text = "[...document.querySelectorAll('#lineage {} li')].map(each => each.innerText.replaceAll('\\n', ' '))"
    came_from, became = page.run(text.format(".card:first-child")), page.run(text.format(".card:last-child"))
    assert came_from[0].startswith(f"init: run bases/{EVIL}")
    assert came_from[1].startswith(f"{EVIL}: data tests.zoo.source")
    assert became == []
    assert page.run("document.querySelector('#lineage li .pill.unknown').textContent") == "unknown"
    assert page.run("document.querySelector('#lineage .card:last-child').innerText").endswith("which holds this run.")


@pytest.mark.multiprocess
def test_tiles_that_fill_no_row_leave_no_bar(page, folder):
    page.view(1100, 900)
    page.open(folder / "one.html")
    tops = page.run("[...document.querySelectorAll('.tile')].map(each => each.getBoundingClientRect().top)")
    assert 0 < tops.count(tops[-1]) < tops.count(tops[0])  # cells of the last row are empty
    background = "getComputedStyle(document.querySelector('{}')).backgroundColor"
    assert page.run(background.format(".tiles")) == page.run(background.format(".card"))


@pytest.mark.multiprocess
def test_sections_come_in_the_order_of_their_use(page, folder):
    page.open(folder / "one.html")
    names = page.run("[...document.querySelectorAll('section')].map(each => each.id)")
    order = ["overview", "warnings", "curves", "layers", "time", "slices", "worst", "results", "lineage", "settings"]
    assert names == order


@pytest.mark.multiprocess
def test_name_of_a_run_is_shown_as_text(page, folder):
    page.open(folder / "one.html")
    assert page.run("document.querySelector('h1').textContent") == EVIL
    assert page.run("document.title") == f"{EVIL} · Convoy"
