"""Figures of driving scenes, in matplotlib: tracks on lanes, boxes and masks from above, overlays on camera images.

`Task.figure` returns them, or draws its own. Each function draws into `ax` if it is given, so that they combine. They
use no pyplot, so no figure stays in memory and any thread may draw. Lengths are in metres. All of them share one look:
grey for what was seen, green for what is true, red for predictions, and blue for the ego vehicle.
"""

from engine.plot.cameras import camera, project
from engine.plot.scenes import boxes, masks, tracks
from engine.plot.style import outline

__all__ = ["boxes", "camera", "masks", "outline", "project", "tracks"]
