"""Films a run that is killed and resumed, and one that is not: python docs/images/resume.py [--output=FILE]

The first run gets SIGKILL in the middle of its training, and the same command resumes it. A second run trains without
a break. At the end, the hashes of their weights are compared. Everything runs in an empty folder. The picture leaves
out the time of the second run.
"""

import argparse
import hashlib
import re
import tempfile
from pathlib import Path

from terminal import Film, record

COLUMNS, ROWS = 104, 20
KILL_AFTER = 0.6  # of the steps
PAUSE_S = 2.0
TRAIN = ("convoy", "train", "--config=configs.digits")


def far_enough(output: str) -> bool:
    """Returns whether the progress bar has passed KILL_AFTER."""
    steps = re.findall(r"([\d,]+)/([\d,]+)\x1b", output)
    done, total = (int(text.replace(",", "")) for text in steps[-1]) if steps else (0, 1)
    return done >= KILL_AFTER * total


def film(folder: Path, options: list[str]) -> str:
    """Runs all commands in a folder and returns the film as an SVG.

    Raises:
        ValueError: the weights of the two runs differ.
    """
    shown = Film(COLUMNS, ROWS)
    killed, whole = ([*TRAIN, f"--workdir=runs/{name}", *options] for name in ("killed", "whole"))
    for kill_when in (far_enough, None):
        shown.line(_prompt(killed))
        shown.wait(PAUSE_S / 2)
        shown.play(record(killed, folder, COLUMNS, kill_when))
        if kill_when:
            shown.line("")
            shown.line("\x1b[31;1mKilled\x1b[0m   \x1b[2m# by SIGKILL, as of kill -9\x1b[0m")
        shown.wait(PAUSE_S)
    shown.line(_prompt([*whole, "&> log.txt"]) + "   \x1b[2m# never killed\x1b[0m")
    record(whole, folder, COLUMNS)
    shown.wait(PAUSE_S / 2)
    for name in ("killed", "whole"):
        export = ["convoy", "export", f"runs/{name}", f"--out={name}.safetensors"]
        record(export, folder, COLUMNS)
        shown.line(_prompt([*export, "&> log.txt"]))
        shown.wait(PAUSE_S / 4)
    shown.line(_prompt(["sha256sum", "*.safetensors"]))
    digests = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("*.safetensors"))}
    for file, digest in digests.items():
        shown.line(f"{digest}  {file.name}")
    if len(set(digests.values())) != 1:
        raise ValueError(f"the weights of the two runs differ: {digests}")
    shown.wait(3 * PAUSE_S)
    return shown.svg("A run is killed in the middle of its training, resumed, and ends with the same weights")


def _prompt(words: list[str]) -> str:
    return f"\x1b[32;1m$\x1b[0m {' '.join(words)}"


def main() -> None:
    """Runs the commands and writes the film."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".svg"))
    args, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="convoy-film-") as folder:
        args.output.write_text(film(Path(folder), options))


if __name__ == "__main__":
    main()
