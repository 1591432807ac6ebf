"""Evaluates the sets of FOLDER/inputs.json with pycocotools and writes FOLDER/results.json. Imports no engine.

A set is a list of images; an image has labels [class, x0, y0, x1, y1, crowd, area] and predictions [class, score, x0,
y0, x1, y1]. The classes are 0 to the number of classes - 1.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate(images, classes):
    """Returns the 12 numbers of the summary; AP [thresholds, classes, sizes], and AR [..., most predictions]."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(len(images))],
        "categories": [{"id": i} for i in range(classes)],
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": crowd, "area": area}
            for i, image in enumerate(images)
            for c, x0, y0, x1, y1, crowd, area in image["labels"]
        ],
    }
    for number, annotation in enumerate(truth.dataset["annotations"], 1):
        annotation["id"] = number
    truth.createIndex()
    found = COCO()
    found.dataset = {
        **truth.dataset,
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score, "iscrowd": 0}
            for i, image in enumerate(images)
            for c, score, x0, y0, x1, y1 in image["predictions"]
        ],
    }
    for number, annotation in enumerate(found.dataset["annotations"], 1):
        annotation |= {"id": number, "area": annotation["bbox"][2] * annotation["bbox"][3]}
    found.createIndex()
    run = COCOeval(truth, found, "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    precision, recall = run.eval["precision"][..., -1], run.eval["recall"]  # [T, R, K, A], [T, K, A, M]
    return {
        "summary": dict(zip(KEYS, np.asarray(run.stats).tolist(), strict=True)),
        "ap": precision.mean(1).tolist(),
        "ar": recall.tolist(),
    }


def main(folder):
    """Reads the sets in the folder and writes their results."""
    inputs = json.loads((folder / "inputs.json").read_text())
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        results = [evaluate(images, inputs["classes"]) for images in inputs["sets"]]
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
