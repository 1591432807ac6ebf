"""Trains and tests forecasts of pedestrians at all five places of ETH/UCY, and prints the table of errors.

tools/bazel run //benchmarks:forecasting -- --folder FOLDER [--seeds 0,1,2] [--modes 20,1] [--places eth,zara1]
python -m benchmarks.forecasting --folder FOLDER

Each place, number of modes and seed is a run of `configs/forecast_eth_ucy.py` in a folder of --workdir. A finished run
is kept, and the same command continues an unfinished one. The tested checkpoint is the best one on the validation
split.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import engine
from convoy_zoo.configs import forecast_eth_ucy
from convoy_zoo.models.pedestrians.eth_ucy import PLACES, PREDICTED, Scenes
from engine.base.errors import ConvoyError
from engine.config.override import apply

SOCIAL_GAN = ", two agents or more"  # the windows that the loader of Social-GAN takes
PUBLISHED = {
    "Trajectron++, corrected, K = 20": "0.67/1.18 0.18/0.28 0.30/0.54 0.25/0.41 0.18/0.32",
    "AgentFormer, corrected, K = 20": "0.45/0.75 0.14/0.22 0.25/0.45 0.18/0.30 0.14/0.24",
}
"""ADE/FDE in metres. Trajectron++ (Salzmann et al. 2020): issue 53 of its repository, after the fix of its features.
AgentFormer (Yuan et al. 2021): the README of its repository."""

type Errors = tuple[float, float]
"""ADE and FDE in metres."""


def main(argv: Sequence[str] | None = None) -> None:
    """Trains all models and prints the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.forecasting", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", default=forecast_eth_ucy.FOLDER, help="folder of the recordings")
    parser.add_argument("--places", default=",".join(PLACES), type=_places, help="places to test")
    parser.add_argument(
        "--seeds", default="0,1,2", type=partial(_numbers, least=0), help="seeds of the runs with 20 modes"
    )
    modes = partial(_numbers, least=1)
    parser.add_argument("--modes", default="20,1", type=modes, help="modes of the models; 1 trains with the first seed")
    parser.add_argument("--workdir", default="runs/eth_ucy", help="folder of the runs")
    parser.add_argument("overrides", nargs="*", help="fields of the config, such as train.total='2 epochs'")
    args = parser.parse_args(argv)
    try:  # before anything is trained
        for place in args.places:
            for split in ("test", "train", "validation"):
                Scenes(place, split, args.folder)
        apply(forecast_eth_ucy.get_config(), args.overrides)
    except ConvoyError as error:
        parser.error(str(error))
    rows: dict[str, dict[str, list[Errors]]] = {}
    for modes in args.modes:
        for seed in args.seeds if modes > 1 else args.seeds[:1]:
            for place in args.places:
                found = train(place, modes, seed, args.folder, Path(args.workdir), args.overrides)
                for name, errors in found.items():
                    rows.setdefault(name, {}).setdefault(place, []).append(errors)
                print(f"{place}, {modes} modes, seed {seed}: {', '.join(f'{k} {_text(v)}' for k, v in found.items())}")
    for rule, least in (("", 1), (SOCIAL_GAN, 2)):
        for place in args.places:
            errors = constant_velocity(Scenes(place, "test", args.folder, least))
            rows.setdefault(f"constant velocity, K = 1{rule}", {})[place] = [errors]
    print(table(args.places, rows))


def train(
    place: str, modes: int, seed: int, folder: str, workdir: Path, overrides: Iterable[str] = ()
) -> dict[str, Errors]:
    """Trains one model, and returns the errors of its best checkpoint on the test split by name."""
    config = forecast_eth_ucy.get_config(place, folder)
    config.task.modes, config.train.seed = modes, seed
    config.log.progress = "none"
    apply(config, overrides)
    run = workdir / f"{place}-k{modes}-seed{seed}"
    engine.train(config, workdir=str(run))
    found: Any = engine.evaluate(str(run), step="best")
    names = {f"this model, K = {modes}": "best"} | ({} if modes == 1 else {f"its first of {modes}": "top"})
    return {
        f"{name}{rule}": (found[f"{test}/{which}/min_ade"], found[f"{test}/{which}/min_fde"])
        for name, which in names.items()
        for test, rule in (("test", ""), ("test_social_gan", SOCIAL_GAN))
    }


def constant_velocity(scenes: Scenes) -> Errors:
    """Returns the errors of agents that continue with their last step, over all agents."""
    history, future = (np.concatenate([scenes[i][name] for i in range(len(scenes))]) for name in ("history", "future"))
    step = history[:, -1:] - history[:, -2:-1]
    distance = np.linalg.norm(history[:, -1:] + step * np.arange(1, PREDICTED + 1)[:, None] - future, axis=-1)
    return float(distance.mean()), float(distance[:, -1].mean())


def table(places: Sequence[str], rows: Mapping[str, Mapping[str, Sequence[Errors]]]) -> str:
    """Returns the means over seeds, per place and over places, with the spread of the seeds' averages."""
    lines = [["ADE/FDE in metres", *places, "average", "seeds"]]
    if list(places) == list(PLACES):
        for name, text in PUBLISHED.items():
            errors = [tuple(map(float, cell.split("/"))) for cell in text.split()]
            lines.append([name, *text.split(), _text(np.mean(errors, axis=0)), ""])
    for name, found in rows.items():
        errors = np.array([found[place] for place in places])  # [places, seeds, 2]
        averages = errors.mean(axis=0)
        spread = " ".join(map(_text, averages)) if len(averages) > 1 else ""
        lines.append([name, *map(_text, errors.mean(axis=1)), _text(averages.mean(axis=0)), spread])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def _text(errors: Sequence[float] | np.ndarray) -> str:
    return f"{errors[0]:.3f}/{errors[1]:.3f}"


def _places(text: str) -> list[str]:
    places = text.split(",")
    if unknown := [place for place in places if place not in PLACES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown. Allowed: {', '.join(PLACES)}.")
    return places


def _numbers(text: str, least: int) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) >= least for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from {least} on, such as 1,2.")
    return list(map(int, numbers))


if __name__ == "__main__":
    main()
