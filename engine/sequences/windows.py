"""Cuts the frames of each group into segments without gaps, and these into windows of a fixed number of frames."""

from dataclasses import dataclass, replace

import numpy as np

from engine.base.errors import DataError
from engine.sequences.frame_index import FrameIndex

GAP = 1.5  # times the median step of a group: a larger step is a gap


@dataclass(frozen=True)
class Windows:
    """The windows of the frames of a source.

    Attributes:
        frames: indices of all frames in the source, group by group in order of time, int64 `[frames]`.
        begins: where each segment begins in `frames`, int64 `[segments]`.
        ends: where each segment ends in `frames`, int64 `[segments]`.
        firsts: number of the first window of each segment, then the number of all windows, int64 `[segments + 1]`.
        groups: number of the group of each segment, int64 `[segments]`.
        length: frames of a window.
        stride: frames from the begin of a window to that of the next one.
    """

    frames: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    firsts: np.ndarray
    groups: np.ndarray
    length: int
    stride: int

    def __len__(self) -> int:
        return int(self.firsts[-1])

    @property
    def sizes(self) -> np.ndarray:
        """Number of windows of each segment, int64 `[segments]`."""
        return np.diff(self.firsts)

    @property
    def unused(self) -> int:
        """Number of frames that are in no window."""
        if self.stride >= self.length:
            counted = np.minimum(self.sizes * self.length, self.ends - self.begins)
        else:
            counted = np.where(self.sizes > 0, (self.sizes - 1) * self.stride + self.length, 0)
        return len(self.frames) - int(counted.sum())

    def locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the segment of each window `[n]`, and its number in this segment, int64 `[n]` each."""
        segments = np.searchsorted(self.firsts, windows, side="right") - 1
        return segments, windows - self.firsts[segments]

    def rows(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the frames of windows `[n]`, int64 `[n, length]`, and which are real, bool `[n, length]`.

        A window that ends before its last frame repeats the last frame of its segment.
        """
        segments, numbers = self.locate(windows)
        at = (self.begins[segments] + numbers * self.stride)[:, None] + np.arange(self.length)
        ends = self.ends[segments][:, None]
        return self.frames[np.minimum(at, ends - 1)], at < ends

    def limited(self, count: int) -> "Windows":
        """Returns the first `count` windows; the last of their segments ends where they end."""
        [segment], [number] = self.locate(np.array([count - 1]))
        keep = int(segment) + 1
        ends, firsts = self.ends[:keep].copy(), self.firsts[: keep + 1].copy()
        ends[-1] = min(ends[-1], self.begins[segment] + number * self.stride + self.length)
        firsts[-1] = count
        return replace(self, begins=self.begins[:keep], ends=ends, firsts=firsts, groups=self.groups[:keep])


@dataclass(frozen=True)
class Cut:
    """How windows are cut.

    Attributes:
        length: frames of a window.
        stride: frames from the begin of a window to that of the next one.
        max_gap: largest step in time within a window; None: 1.5 times the median step of the group.
        pads: whether the last window of a segment may be shorter than `length`.
        longest: most frames of a group; None for any number.
    """

    length: int
    stride: int
    max_gap: float | None = None
    pads: bool = False
    longest: int | None = None


def cut(index: FrameIndex, how: Cut, dataset: str, where: str) -> Windows:
    """Returns the windows of all groups.

    Args:
        index: groups and times of the frames.
        how: how they are cut.
        dataset: name of the source of the frames, for error texts.
        where: name of the source of the windows, for error texts.

    Raises:
        DataError: a group has one frame or too many, its times do not increase, or no group has a whole window.
    """
    length, stride, max_gap, longest = how.length, how.stride, how.max_gap, how.longest
    frames = np.argsort(index.groups, kind="stable")
    groups, times = index.groups[frames], index.times[frames]
    counts = np.bincount(groups, minlength=len(index.names))
    starts = np.cumsum(counts) - counts
    if longest is not None and len(found := np.flatnonzero(counts > longest)):
        raise DataError(
            f"{where}: group {index.names[found[0]]!r} of {dataset}, from example {frames[starts[found[0]]]} on, has "
            f"{counts[found[0]]:,} frames, and longest = {longest:,}. Correct `group`, or raise `longest`."
        )
    if length > 1 and len(found := np.flatnonzero(counts == 1)):
        raise DataError(
            f"{where}: group {index.names[found[0]]!r} of {dataset} has one frame, example {frames[starts[found[0]]]}. "
            "A drive has at least two. Correct `group`, or leave this example out."
        )
    within = groups[1:] == groups[:-1]
    steps = np.diff(times)
    if len(found := np.flatnonzero(within & (steps <= 0))):
        raise _unordered(index, frames, times, int(found[0]), dataset, where)
    gaps = steps > (_default_gaps(steps[within], counts)[groups[1:]] if max_gap is None else max_gap)
    begins = np.concatenate([[0], np.flatnonzero(~within | gaps) + 1]).astype(np.int64)
    ends = np.append(begins[1:], len(frames)).astype(np.int64)
    sizes = -(-(ends - begins) // stride) if how.pads else np.maximum(0, (ends - begins - length) // stride + 1)
    firsts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    if not firsts[-1]:
        raise DataError(
            f"{where}: length = {length} frames, but the longest part of a drive of {dataset} without a gap has "
            f"{int((ends - begins).max())}. Use a smaller length, or a larger max_gap."
        )
    return Windows(frames, begins, ends, firsts, groups[begins], length, stride)


def _default_gaps(steps: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the largest step of each group that is no gap, float64 `[groups]`: GAP times its median step.

    Args:
        steps: the steps within groups, group by group.
        counts: frames of each group `[groups]`.
    """
    sizes = np.maximum(counts - 1, 0)
    groups = np.repeat(np.arange(len(counts)), sizes)
    ordered = steps[np.lexsort((steps, groups))]
    middle = np.cumsum(sizes) - sizes + (sizes - 1) // 2  # the lower median, which is one of the steps
    found = np.full(len(counts), np.inf)
    found[sizes > 0] = GAP * ordered[middle[sizes > 0]]
    return found


def _unordered(
    index: FrameIndex, frames: np.ndarray, times: np.ndarray, at: int, dataset: str, where: str
) -> DataError:
    (before, after), (one, two) = times[at : at + 2], frames[at : at + 2]
    what = f"{where}: example {two} of {dataset} in group {index.names[index.groups[one]]!r} has"
    if before == after:
        return DataError(
            f"{what} the same time, {after}, as example {one} before it. Remove one of them, or correct `order`."
        )
    return DataError(
        f"{what} an earlier time, {after}, than example {one} before it, {before}. Write the frames of each drive in "
        "order of time, or correct `order`."
    )
