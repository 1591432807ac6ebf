"""Videos for tests, written by FFmpeg."""

from pathlib import Path
from typing import Any

import av
import numpy as np

CODECS = {"mp4": "libx264", "mkv": "libx264", "webm": "libvpx-vp9", "mpg": "mpeg2video", "ts": "libx264"}
"""Ending of a container -> codec. All but webm have frames that refer to later ones."""


def write_video(path: Path, frames: int = 40, height: int = 32, width: int = 48, codec: str | None = None) -> str:
    """Writes frames that differ, at 10 Hz, with a keyframe at least every 10 frames, and returns the path."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec or CODECS[path.suffix[1:]], rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 10
        stream.codec_context.thread_count = 1
        if stream.codec_context.name == "libx264":
            stream.options = {"x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0:log-level=none"}
        for number in range(frames):
            pixels = np.full((height, width, 3), (number * 6) % 256, np.uint8)
            pixels[:, : number + 1, 0] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def decoded(path: str) -> list[np.ndarray]:
    """Returns all frames of a video, read from its begin to its end."""
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
