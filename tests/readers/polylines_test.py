import numpy as np

from engine.readers.polylines import cut_polylines


def test_feature_is_cut_into_pieces_of_equal_size():
    points = np.arange(14.0).reshape(7, 2)
    cut, valid, pieces = cut_polylines(points, np.array([4, 0, 3]), 3)
    assert pieces.tolist() == [2, 0, 1]
    assert valid.tolist() == [[True] * 3, [True, False, False], [True] * 3]
    assert cut[valid].tolist() == points.tolist()
    assert cut[1, 1:].tolist() == [[0, 0], [0, 0]]


def test_no_features_are_no_polylines():
    cut, valid, pieces = cut_polylines(np.zeros((0, 3)), np.zeros(0, np.int64), 5)
    assert (cut.shape, valid.shape, pieces.shape) == ((0, 5, 3), (0, 5), (0,))
