"""Reads clips of video files with random access to every frame (extra `video`).

The index of a file holds the time of every frame and which of them are keyframes. A clip is decoded from the last
keyframe before it, and its frames are found by their times, so that they are exact in files with reordered frames.
"""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.base.errors import DataError
from engine.data.examples import Example
from engine.data.file_states import FileStates
from engine.data.source import SEPARATOR, BaseSource
from engine.data.stages import stage
from engine.readers.extras import import_extra
from engine.readers.files import Pattern, file_names, find_files, sampled_files
from engine.readers.fingerprints import digest
from engine.readers.saved_index import Index, file_indexes
from engine.storage.mounts import shown

FORM = "video-1"  # format of the saved index
ADVICE = "Replace the file, or convert it to MP4, as from AVI: ffmpeg -i FILE.avi FILE.mp4."
SEEKS = 3  # keyframes from which a frame is searched before the file is decoded from its begin


class Video(BaseSource):
    """Source of clips of video files.

    An example holds `frames` uint8 `[frames, height, width, 3]`, `time_s` float32 `[frames]` from the start of the
    file, `first`, the number of the first frame in the file, and as text `file`, the name of the file.

    A frame that the decoder reports as damaged, and those that refer to it, are bad examples. Codecs have no checksums:
    a few changed bytes may also give wrong pixels without an error.

    On the first use of a file, its packets are read once, without decoding them, and the index is saved in
    `.convoy_index/` next to the file, or in the user's cache folder.
    """

    new_arrays = True

    def __init__(
        self,
        pattern: Pattern,
        frames: int = 1,
        stride: int = 1,
        step: int | None = None,
        size: Sequence[int] | None = None,
    ):
        """Opens files.

        Args:
            pattern: path or list of paths; shell wildcards and bucket addresses (`storage/mounts.py`) are allowed.
            frames: number of frames of a clip.
            stride: distance from one frame of a clip to the next.
            step: distance from the first frame of a clip to that of the next clip of a file. Default: clips do not
                overlap. A clip that would end after the last frame is left out.
            size: (height, width) to which each frame is resized. Default: its own size.

        Raises:
            DataError: an argument is invalid, no file matches, none has a whole clip, or PyAV is missing.
        """
        step = frames * stride if step is None else step
        if min(frames, stride, step, *(size or [1])) < 1:
            raise DataError(f"frames={frames}, stride={stride}, step={step}, size={size}: allowed are 1 and more.")
        import_extra("av", "video", "Video files")
        self.paths = find_files(pattern, "video")
        self.file_states = FileStates(self.paths)
        self._stride, self._step, self._frames = stride, step, frames
        self._size = None if size is None else (int(size[0]), int(size[1]))
        self._indexes = file_indexes(self.paths, FORM, _build)
        counts = [self._clips(index) for index in self._indexes]
        self._starts = np.cumsum([0, *counts])
        if not any(len(index["pts"]) for index in self._indexes):
            self._decode(0, [0])  # raises the error
        if not len(self):
            most = max(len(index["pts"]) for index in self._indexes)
            raise DataError(
                f"{pattern}: a clip spans {(frames - 1) * stride + 1} frames, but no file has more than {most}. Use "
                "shorter clips."
            )

    def _clips(self, index: Index) -> int:
        """Returns the number of clips of a file; a file that cannot be read counts as one bad clip."""
        count = len(index["pts"])
        if not count:
            return 1
        return max(0, (count - (self._frames - 1) * self._stride - 1) // self._step + 1)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Example:
        """Returns a clip. Raises DataError, which names the file and the frames, if it cannot be decoded."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} is not below {len(self)}, the number of clips")
        file = int(np.searchsorted(self._starts, index, side="right")) - 1
        first = int(index - self._starts[file]) * self._step
        numbers = [first + n * self._stride for n in range(self._frames)]
        with stage("decode"):
            frames = np.stack(self._decode(file, numbers))
        found = self._indexes[file]
        times = (found["pts"][numbers] - found["pts"][0]) * (found["time_base"][0] / found["time_base"][1])
        name = os.path.basename(self.paths[file])
        return {"frames": frames, "time_s": times.astype(np.float32), "first": np.int32(first), "file": name}

    def fingerprint(self) -> str:
        """Returns the names, sizes and hashed samples of the first files, a hash of the names of all, and the clips."""
        names = digest(file_names(self.paths))
        clips = f"{len(self)} clips of {self._frames} frames, stride {self._stride}, step {self._step}"
        return SEPARATOR.join([*sampled_files(self.paths), f"names {names}", clips, f"size {self._size}"])

    def _decode(self, file: int, numbers: list[int]) -> list[np.ndarray]:
        """Returns frames of a file, whose numbers ascend."""
        path, index = self.paths[file], self._indexes[file]
        try:
            if not len(index["pts"]):
                _scan(path)
            targets, found = index["pts"][numbers].tolist(), {}
            starts = np.searchsorted(index["keys"], targets, side="right")
            with _open(path) as container:
                for start, group in itertools.groupby(zip(starts.tolist(), targets, strict=True), lambda pair: pair[0]):
                    wanted = [target for _, target in group]
                    found |= self._after_seek(container, index["keys"].tolist()[:start], wanted)
            if len(found) < len(targets):
                with _open(path) as container:  # from its begin: some containers cannot seek to every keyframe
                    found = self._frames_at(container, targets, targets[0])
            return [found[target] for target in targets]
        except Exception as error:  # PyAV raises its own errors, and those of Python
            reason = "the times of its frames are not those of its packets" if isinstance(error, KeyError) else error
            raise DataError(
                f"{shown(path)}: frames {numbers[0]} to {numbers[-1]} cannot be decoded: {reason}. {ADVICE}"
            ) from error

    def _after_seek(self, container: Any, keys: list[int], times: list[int]) -> dict[int, np.ndarray]:
        """Returns time -> frame, as far as they are found. `keys` are the times of the keyframes before them."""
        stream = container.streams.video[0]
        # A container seeks by the times at which frames are decoded, which are not those at which they are shown. So
        # decoding may begin after a frame, and an earlier start finds it.
        for key in reversed(keys[-SEEKS:]):
            container.seek(key, stream=stream, backward=True)
            if len(found := self._frames_at(container, times, key)) == len(times):
                return found
        return {}

    def _frames_at(self, container: Any, times: list[int], begin: int) -> dict[int, np.ndarray]:
        """Decodes from where the container is; returns time -> frame, as far as they are found.

        Frames before `begin` may be damaged: after a seek, those that refer to frames before the keyframe are.
        """
        found: dict[int, np.ndarray] = {}
        for frame in container.decode(video=0):
            if frame.is_corrupt and frame.pts is not None and frame.pts >= begin:
                raise ValueError("a frame is damaged")
            if frame.pts in times:
                found[frame.pts] = self._pixels(frame)
            if frame.pts is not None and frame.pts >= times[-1]:
                break
        return found

    def _pixels(self, frame: Any) -> np.ndarray:
        height, width = self._size or (frame.height, frame.width)
        return frame.to_ndarray(format="rgb24", height=height, width=width)


def _open(path: str) -> Any:
    """Returns a container whose first video stream is decoded by one thread."""
    import av

    container = av.open(path)
    try:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        # The threads of the engine read several clips at once.
        container.streams.video[0].codec_context.thread_count = 1
    except BaseException:
        container.close()
        raise
    return container


def _build(path: str) -> Index:
    """Returns the sorted times of all frames, those of the keyframes, and the unit of time as a fraction."""
    try:
        pts, keys, base = _scan(path)
    except DataError:
        raise
    except Exception:  # reading a clip raises the error again; an empty index is not saved
        pts, keys, base = [], [], ()
    times = {"pts": np.sort(np.array(pts, np.int64)), "keys": np.sort(np.array(keys, np.int64))}
    return {**times, "time_base": np.array(base, np.int64)}


def _scan(path: str) -> tuple[list[int], list[int], tuple[int, int]]:
    """Reads the packets of a file. Raises DataError if these have no times, and PyAV's errors."""
    pts, keys, known = [], [], True
    with _open(path) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                known = known and packet.pts is not None
                pts.append(packet.dts if packet.pts is None else packet.pts)
                keys += pts[-1:] if packet.is_keyframe else []
        if not pts:
            raise ValueError("it has no frames")
        if not known and len(keys) < len(pts):
            raise DataError(f"{shown(path)} does not hold the times of its frames, which may be reordered. {ADVICE}")
        return pts, keys, (stream.time_base.numerator, stream.time_base.denominator)
