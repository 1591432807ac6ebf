import numpy as np

from engine.readers.poses import pose_matrices


def test_quarter_turn_about_z_moves_the_x_axis_to_the_y_axis():
    half = 0.5**0.5
    found = pose_matrices([[1, 2, 3, half, 0, 0, half], [0, 0, 0, 2, 0, 0, 0]])
    np.testing.assert_allclose(found[0] @ [1, 0, 0, 1], [1, 3, 3, 1], atol=1e-12)
    assert found[1].tolist() == np.eye(4).tolist()  # the quaternion is normalized
