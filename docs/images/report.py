"""Takes the pictures of docs/report.md in headless Chromium: python docs/images/report.py [--runs FOLDER]

The runs are `wide-0`, `wide-1`, `narrow-0` and `narrow-1` below the folder, with the settings in RUNS and TRAIN. A run
that is missing is trained first; all four take about ten minutes on two cores. They must be of one commit without
uncommitted changes, since the pictures show what differs between them. Training needs the extras `sim` and `parquet`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
TOP = FOLDER.parents[1]
sys.path.insert(0, str(TOP))

from benchmarks import browser  # noqa: E402
from engine.cli.main import main as convoy  # noqa: E402
from engine.experiments.record import read_record  # noqa: E402
from engine.run import code  # noqa: E402

CONFIG = "configs.forecast_sim"
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


def train(folder: Path) -> None:
    """Trains the runs that are missing. Ends the script if their code would have uncommitted changes."""
    missing = [name for name in RUNS if not is_done(folder / name)]
    if not missing:
        return
    status = ["git", "-C", str(TOP), "status", "--porcelain", "--untracked-files=no"]
    if subprocess.run(status, capture_output=True, check=True).stdout:
        sys.exit(f"{TOP} has uncommitted changes. Commit them first, so that the runs can name their code.")
    for name in missing:
        words = ["train", f"--config={CONFIG}", f"--workdir={folder / name}", *flags(name)]
        environment = {**os.environ, "PYTHONPATH": str(TOP)}
        done = subprocess.run([sys.executable, "-m", "engine.cli.main", *words], check=False, env=environment)
        if done.returncode:
            sys.exit(done.returncode)


def flags(name: str) -> list[str]:
    """Returns the flags of a run."""
    width, seed = RUNS[name]
    settings = {**TRAIN, "task.width": width, "train.seed": seed}
    return [f"--config.{setting}={value}" for setting, value in settings.items()]


def is_done(run: Path) -> bool:
    """Returns whether a run has ended."""
    return run.is_dir() and read_record(run, run.name).state == "done"


def check_code(folder: Path) -> None:
    """Ends the script unless all runs were trained from one commit without uncommitted changes."""
    found = {name: code.read(folder / name / "code.json") for name in RUNS}
    for name, one in found.items():
        if not one.commit or one.dirty is not False:
            sys.exit(f"{folder / name}: was trained by {one or 'unknown code'}. Remove it to train it again.")
    if len({one.commit for one in found.values()}) > 1:
        texts = ", ".join(f"{name} {one.commit[:12]}" for name, one in found.items())
        sys.exit(f"{folder}: the runs are of several commits ({texts}). Remove them to train them again.")


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


def take_all(folder: Path, output: Path) -> None:
    """Writes the pages of the runs, and takes the pictures."""
    check_code(folder)
    runs = {name: str(folder / name) for name in RUNS}
    with tempfile.TemporaryDirectory(prefix="convoy-report-", ignore_cleanup_errors=True) as name:
        pages = {kind: Path(name) / f"{kind}.html" for kind in ("one", "two", "four")}
        commands = (
            ["report", runs["wide-1"], f"--out={pages['one']}"],
            ["compare", runs["narrow-0"], runs["wide-0"], f"--html={pages['two']}"],
            ["compare", *(runs[run] for run in sorted(RUNS)), f"--html={pages['four']}"],
        )
        for words in commands:
            if status := convoy(words):
                sys.exit(status)
        with browser.page(Path(name) / "browser") as page:
            take(page, pages["one"], "light", "", output / "report-light.png")
            take(page, pages["one"], "dark", "#slices", output / "report-dark.png")
            take(page, pages["two"], "light", "", output / "comparison-light.png")
            take(page, pages["four"], "dark", "#differences", output / "comparison-dark.png")


def main() -> None:
    """Trains what is missing, and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/report"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the pictures")
    args = parser.parse_args()
    train(args.runs)
    take_all(args.runs, args.output)


if __name__ == "__main__":
    main()
