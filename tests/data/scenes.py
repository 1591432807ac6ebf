"""Sources of scenes with different numbers of agents, for the tests of ragged examples."""

import numpy as np

SIZES = [3, 0, 9, 1, 8, 5, 5, 12, 2, 7, 4, 1, 6, 3, 16]


class Scenes:
    """Scenes whose agents are numbered across all scenes, with an entry of the whole scene."""

    def __init__(self, sizes=SIZES):
        self.sizes, self.ends = sizes, np.cumsum(sizes)

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        agents = np.arange(self.sizes[index]) + self.ends[index] - self.sizes[index] + 1
        return {"agent": agents, "pair": np.stack([agents, -agents], 1).astype(np.float32), "scene": np.int32(index)}

    def lengths(self):
        return self.sizes


class TwoAxes(Scenes):
    """Scenes with a second axis, `lanes`."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "lane": np.full((20 - self.sizes[index], 2), index, np.int16)}

    def lengths(self):
        return {"agents": self.sizes, "lanes": [20 - size for size in self.sizes]}


FIELDS = ("agent", "pair")
