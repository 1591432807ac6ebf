"""Matrices of poses, which driving datasets store as a translation and a quaternion."""

import numpy as np
import numpy.typing as npt


def pose_matrices(poses: npt.ArrayLike) -> np.ndarray:
    """Returns poses `[..., 7]`, a translation and a quaternion w, x, y, z, as matrices float64 `[..., 4, 4]`."""
    values = np.asarray(poses, np.float64)
    quaternion = values[..., 3:] / np.linalg.norm(values[..., 3:], axis=-1, keepdims=True)
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), values[..., 0]],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x), values[..., 1]],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y), values[..., 2]],
        [0 * w, 0 * w, 0 * w, 1 + 0 * w],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
