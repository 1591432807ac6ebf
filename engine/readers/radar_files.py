"""Reads the radar files of nuScenes: points in the binary form of PCD, the format of the Point Cloud Library."""

from pathlib import Path

import numpy as np

from engine.base.errors import DataError
from engine.storage.mounts import shown

FIELDS = ("x", "y", "z", "dyn_prop", "id", "rcs", "vx", "vy", "vx_comp", "vy_comp", "is_quality_valid", "ambig_state")
FIELDS += ("x_rms", "y_rms", "invalid_state", "pdh0", "vx_rms", "vy_rms")
"""Columns of the points, as in `RadarPointCloud` of nuscenes-devkit."""
UNAMBIGUOUS, VALID = 3, 0  # values of ambig_state and invalid_state that the devkit keeps by default
_KINDS = {"F": "f", "I": "i", "U": "u"}


def read_radar(path: str) -> np.ndarray:
    """Returns the valid points of a file, float32 `[points, 18]`, by `FIELDS`.

    Valid are, as in nuscenes-devkit, those with `invalid_state` 0 and `ambig_state` 3.

    Raises:
        DataError: the file is missing, damaged or has other fields.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read ({error.strerror or error}). Copy the file again.") from error
    try:
        head, mark, rest = data.partition(b"\nDATA binary\n")
        header = {line.split()[0]: line.split()[1:] for line in head.decode("ascii").splitlines() if line.strip()}
        if not mark or tuple(header["FIELDS"]) != FIELDS:
            raise ValueError("it has no binary points with the fields of a radar of nuScenes")
        kinds = [f"<{_KINDS[kind]}{size}" for kind, size in zip(header["TYPE"], header["SIZE"], strict=True)]
        table = np.frombuffer(rest, list(zip(FIELDS, kinds, strict=True)), count=int(header["WIDTH"][0]))
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{shown(path)}: is no radar file: {error}. Copy the file again.") from error
    points = np.stack([table[name] for name in FIELDS], axis=-1).astype(np.float32)
    keep = (table["invalid_state"] == VALID) & (table["ambig_state"] == UNAMBIGUOUS)
    return points[keep & ~np.isnan(points).any(axis=1)]  # a single point of NaN stands for none
