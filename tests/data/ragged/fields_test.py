import numpy as np
import pytest

from engine.data.ragged import fields as ragged
from engine.data.ragged.fields import Ragged, costs
from engine.data.sampling.sampler import check_costs
from engine.data.source import ArraySource, BaseSource


class Scans(BaseSource):
    """Examples without a method `lengths`."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"points": np.zeros((index + 1, 3)), "lanes": np.zeros(2 * index), "label": index}


def test_example_is_split_by_axis():
    fields = Ragged({"points": "points", "lanes": ["lanes"]}, "Padded")
    example = fields.read(Scans(), 2)
    assert (example.lengths, list(example.fields), example.rest) == ((3, 4), ["points", "lanes"], {"label": 2})
    assert fields.by_axis([3, 4]) == {"points": 3, "lanes": 4} and fields.text([3, 4]) == "points 3, lanes 4"
    single = Ragged("points", "Padded")
    assert single.by_axis([3]) == 3 and single.text([3]) == "3" and single.parse(8, "length") == (8,)


def test_lengths_are_given_known_or_measured(capsys, monkeypatch):
    class Known(Scans):
        def lengths(self):
            return {"points": [5, 6, 7], "lanes": np.zeros(3, np.int16)}

    fields = Ragged({"points": "points", "lanes": "lanes"}, "Padded")
    assert fields.measure(Known()).tolist() == [[5, 6, 7], [0, 0, 0]]
    assert fields.measure(Known(), {"points": [1, 1, 1], "lanes": [2, 2, 2]}).tolist() == [[1] * 3, [2] * 3]
    assert not capsys.readouterr().err
    monkeypatch.setattr(ragged, "REPORT_S", -1.0)
    assert fields.measure(Scans()).tolist() == [[1, 2, 3], [0, 2, 4]]
    assert (
        "measuring the examples of tests.data.ragged.fields_test.Scans: 2 of 3. With a method"
        in capsys.readouterr().err
    )
    with pytest.raises(ragged.DataError, match=r"lengths\(\) must return a dict of points, lanes, the axes"):
        fields.measure(Scans(), [1, 2, 3])


def test_cost_is_the_number_of_elements_unless_the_source_says_otherwise():
    class Weighed(Scans):
        def costs(self):
            return [1, 4, 9]

    lengths = np.array([[1, 2, 3], [10, 10, 10]])
    assert costs(Scans(), lengths).tolist() == [11, 12, 13]
    assert costs(Weighed(), lengths).tolist() == [1, 4, 9]
    with pytest.raises(ragged.DataError, match=r"ArraySource.costs\(\) returned int64\[2\]: allowed are finite"):
        check_costs(ArraySource({"x": np.zeros(3)}), [1, 2])
