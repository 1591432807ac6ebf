"""Evaluates the forecasts of FOLDER/inputs.json with av2 and writes FOLDER/results.json. Imports no engine.

A set has forecasts [agents, modes, steps, 2], futures [agents, steps, 2] and probabilities [agents, modes].
"""

import json
import sys
from pathlib import Path

import numpy as np
from av2.datasets.motion_forecasting.eval.metrics import (
    compute_ade,
    compute_brier_ade,
    compute_brier_fde,
    compute_fde,
    compute_is_missed_prediction,
)


def evaluate(one):
    """Returns the numbers of each agent, of its mode with the smallest error at the end."""
    found = []
    for forecast, future, probability in zip(one["forecasts"], one["futures"], one["probabilities"], strict=True):
        forecast, future, probability = np.array(forecast), np.array(future), np.array(probability)
        best = int(np.argmin(compute_fde(forecast, future)))
        found.append(
            {
                "min_ade": compute_ade(forecast, future)[best],
                "min_fde": compute_fde(forecast, future)[best],
                "miss_rate": float(compute_is_missed_prediction(forecast, future)[best]),
                "brier_min_ade": compute_brier_ade(forecast, future, probability)[best],
                "brier_min_fde": compute_brier_fde(forecast, future, probability)[best],
                "smallest_ade": compute_ade(forecast, future).min(),
            }
        )
    return found


def main(folder):
    """Reads the sets in the folder and writes their results."""
    sets = json.loads((folder / "inputs.json").read_text())["sets"]
    (folder / "results.json").write_text(json.dumps([evaluate(one) for one in sets]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
