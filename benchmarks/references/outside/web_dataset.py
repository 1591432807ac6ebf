"""Writes the samples of FOLDER/inputs.json as a shard and reads it, by webdataset. Imports no engine."""

import json
import sys
from pathlib import Path

import numpy as np
import webdataset


def main(folder):
    """Writes the shard and reads it again."""
    sets = json.loads((folder / "inputs.json").read_text())["sets"]
    path = str(folder / "samples.tar")
    with webdataset.TarWriter(path) as writer:
        for sample in sets:
            arrays = {name: np.array(value, np.float32) for name, value in sample.items() if name == "npy"}
            writer.write(sample | arrays)
    results = []
    for sample in webdataset.WebDataset(path, shardshuffle=False).decode():
        members = {name: value for name, value in sample.items() if not name.startswith("__") or name == "__key__"}
        results.append({name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in members.items()})
    (folder / "results.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
