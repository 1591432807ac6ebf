"""The rows of meshes_test.py: which models are trained on which mesh, or refused by it.

The rows are a part of all models x meshes. Each pair of settings that occurs there occurs here too (`pairs`).
"""

import itertools
import re
from collections.abc import Collection

WHOLE = "digits fashion joint mlp cnn forecast lidar"  # context, pipeline and expert cannot split these models
TABLE = {
    "data 8": "mlp views masks kitti-lidar nuscenes-cameras masked-views",
    "fsdp 8": "mlp",
    "data 8, ZeRO-1": "fashion cnn gan",
    "fsdp 2 x tensor 4": f"{WHOLE} decoder vit traffic tokens scenes motion imported-vit qwen",
    "data 2 x context 4, ring": f"moe decoder bfloat16 {WHOLE}",
    "data 2 x context 4, all-to-all": "scenes vit",
    "pipeline 2 x data 2 x tensor 2": f"dropless {WHOLE}",
    "pipeline 4 x fsdp 2, circular": "moe vit",
    "expert 4 x data 2, ZeRO-1": f"dropless decoder vit {WHOLE}",
    "expert 2 x fsdp 2 x tensor 2": "moe",
    "DCN data 2 x fsdp 4": "cnn mean-teacher fusion drives",
    "data 3 x fsdp 2, 6 devices": "digits joint mlp dropless cameras detection actor-critic memory resnet",
}
ROWS = [(subject, mesh) for mesh, subjects in TABLE.items() for subject in subjects.split()]

# What a model has in common with others.
TRAITS = {
    "dropout": "mlp cnn moe decoder vit imported-vit",
    "convolution": "fashion cnn lidar cameras detection fusion views drives masks kitti-lidar nuscenes-cameras resnet"
    " masked-views",
    "batch statistics": "cnn resnet",
    "packed rows": "moe dropless decoder forecast scenes",
    "experts": "moe dropless",
}


def pairs(subject: str, mesh: str, unsplit: Collection[str]) -> set[tuple[str, str]]:
    """Returns the pairs of settings of a row; `unsplit` are the axes of the mesh that refuse the model.

    They are: model x axis, trait x axis or option of the mesh, and two of the mesh.
    """
    if unsplit:
        return {(subject, axis) for axis in unsplit}
    of_mesh = sorted({part.strip(" 0123456789") for part in re.split(" x |, ", mesh)})
    axes = {"data", "fsdp", "tensor", "context", "pipeline", "expert"}.intersection(of_mesh)
    traits = [trait for trait, subjects in TRAITS.items() if subject in subjects.split()]
    found = itertools.chain(
        itertools.product([subject], axes), itertools.product(traits, of_mesh), itertools.combinations(of_mesh, 2)
    )
    return set(found)
