"""Reads the maps of FOLDER/inputs.json by av2 and writes FOLDER/results.json. Imports no engine."""

import json
import sys
import tempfile
from pathlib import Path

from av2.map.map_api import ArgoverseStaticMap


def features(archive):
    """Returns the points of the features of a map by kind, as av2 reads them."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "log_map_archive_x.json"
        path.write_text(json.dumps(archive))
        found = ArgoverseStaticMap.from_json(path)
    lanes, crossings = found.vector_lane_segments.values(), found.vector_pedestrian_crossings.values()
    edges = [edge for crossing in crossings for edge in (crossing.edge1, crossing.edge2)]
    return {
        "left boundaries": [lane.left_lane_boundary.xyz.tolist() for lane in lanes],
        "right boundaries": [lane.right_lane_boundary.xyz.tolist() for lane in lanes],
        "crossings": [edge.xyz.tolist() for edge in edges],
        "drivable areas": [area.xyz.tolist() for area in found.vector_drivable_areas.values()],
    }


def main(folder):
    """Reads the maps."""
    sets = json.loads((folder / "inputs.json").read_text())["sets"]
    results = [features(archive) for archive in sets]
    (folder / "results.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
