"""Reads the scenarios and the submission in FOLDER by av2 and writes FOLDER/results.json. Imports no engine."""

import json
import sys
from pathlib import Path

import numpy as np
from av2.datasets.motion_forecasting.eval.submission import ChallengeSubmission
from av2.datasets.motion_forecasting.scenario_serialization import load_argoverse_scenario_parquet
from av2.map.map_api import ArgoverseStaticMap


def scenario(folder):
    """Returns the tracks of a scenario, and the points of its map, as av2 reads them."""
    found = load_argoverse_scenario_parquet(folder / f"scenario_{folder.name}.parquet")
    archive = ArgoverseStaticMap.from_json(folder / f"log_map_archive_{folder.name}.json")
    tracks = {
        track.track_id: [
            [state.timestep, *state.position, state.heading, *state.velocity, int(state.observed)]
            for state in track.object_states
        ]
        for track in found.tracks
    }
    lanes = archive.vector_lane_segments
    return {
        "scenario_id": found.scenario_id,
        "city": found.city_name,
        "focal": found.focal_track_id,
        "seconds": ((np.array(found.timestamps_ns) - found.timestamps_ns[0]) * 1e-9).tolist(),
        "types": {track.track_id: track.object_type.value for track in found.tracks},
        "categories": {track.track_id: track.category.value for track in found.tracks},
        "tracks": tracks,
        "boundaries": [lane.left_lane_boundary.xyz.tolist() for lane in lanes.values()],
        "successors": {str(lane.id): lane.successors for lane in lanes.values()},
        "crossings": len(archive.vector_pedestrian_crossings),
    }


def main(folder):
    """Reads the files."""
    names = json.loads((folder / "inputs.json").read_text())["names"]
    found = ChallengeSubmission.from_parquet(folder / "submission.parquet")
    submission = {
        name: [probabilities.tolist(), {track: futures.tolist() for track, futures in tracks.items()}]
        for name, (probabilities, tracks) in found.predictions.items()
    }
    results = {"scenarios": [scenario(folder / "dataset" / name) for name in names], "submission": submission}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
