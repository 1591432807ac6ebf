"""Takes the pictures of docs/report.md in headless Chromium: python docs/images/report.py [--runs FOLDER]

The runs are `wide-0`, `wide-1`, `narrow-0` and `narrow-1` below the folder: forecast_sim with `task.width` 48 and 16
and the seeds 0 and 1, trained for half an epoch with figures of the worst examples. TRAIN has their settings, and a run
that is missing is trained first, which takes about ten minutes on two cores. Their data are those of forecast_sim.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from benchmarks import browser  # noqa: E402

RUNS = {"wide-0": (48, 0), "wide-1": (48, 1), "narrow-0": (16, 0), "narrow-1": (16, 1)}
"""Name -> width and seed."""
TRAIN = {
    "train.total": "0.5 epochs",
    "log.every": "10 steps",
    "checkpoint.every": "0.25 epochs",
    "optimizer.warmup": "20 steps",
    "evaluations.validation.every": "0.1 epochs",
    "evaluations.validation.data.limit": "300",
    "evaluations.test.data.limit": "400",
    "evaluations.test.per_example": "True",
    "evaluations.test.worst": "9",
    "evaluations.test.figures": "9",
}
WIDTH, HEIGHT = 1280, 1180  # pixels of the window


def convoy(*words: str) -> None:
    """Runs a verb."""
    subprocess.run(
        [sys.executable, "-m", "engine.cli.main", *words], check=True, env={"PYTHONPATH": str(FOLDER.parents[1])}
    )


def train(folder: Path) -> None:
    """Trains the runs that are missing."""
    for name, (width, seed) in RUNS.items():
        if not (folder / name / "config.txt").exists():
            settings = {**TRAIN, "task.width": width, "train.seed": seed}
            flags = [f"--config.{setting}={value}" for setting, value in settings.items()]
            convoy("train", "--config=configs.forecast_sim", f"--workdir={folder / name}", *flags)


def take(page: browser.Page, file: Path, scheme: str, section: str, output: Path) -> None:
    """Writes a picture of a page from the top of a section on; "" is the top of the page."""
    page.view(WIDTH, HEIGHT, scheme=scheme)
    page.open(file)
    # Charts and pictures are drawn when they come near the window.
    page.run(
        "(async () => { for (let y = 0; y < document.body.scrollHeight; y += 500) { scrollTo(0, y);"
        " await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))); } })()"
    )
    page.run("Promise.all([...document.images].map(image => image.decode()))")
    # The bar of sections sticks to the top of the window.
    page.run("scrollTo(0, 0)" if not section else f"document.querySelector({section!r}).scrollIntoView()")
    page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.screenshot(output)
    if page.problems:
        raise RuntimeError("; ".join(page.problems))
    shrink(output)


def shrink(picture: Path) -> None:
    """Stores a picture in fewer bytes, with the same pixels."""
    from PIL import Image

    Image.open(picture).convert("RGB").save(picture, optimize=True)


def main() -> None:
    """Trains what is missing, writes the pages, and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/report"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the pictures")
    args = parser.parse_args()
    train(args.runs)
    with tempfile.TemporaryDirectory(prefix="convoy-report-", ignore_cleanup_errors=True) as name:
        pages = {kind: Path(name) / f"{kind}.html" for kind in ("one", "two", "four")}
        runs = {run: str(args.runs / run) for run in RUNS}
        convoy("report", runs["wide-1"], f"--out={pages['one']}")
        convoy("compare", runs["narrow-0"], runs["wide-0"], f"--html={pages['two']}")
        convoy("compare", *(runs[run] for run in sorted(RUNS)), f"--html={pages['four']}")
        with browser.page(Path(name) / "browser") as page:
            take(page, pages["one"], "light", "", args.output / "report-light.png")
            take(page, pages["one"], "dark", "#slices", args.output / "report-dark.png")
            take(page, pages["two"], "light", "", args.output / "comparison-light.png")
            take(page, pages["four"], "dark", "#differences", args.output / "comparison-dark.png")


if __name__ == "__main__":
    main()
