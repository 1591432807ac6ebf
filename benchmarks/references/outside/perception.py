"""Computes operations and their gradients with PyTorch, from random inputs, into FOLDER/perception.npz.

Imports no engine. FOLDER/inputs.json has seeds as "sets". An array is stored as "SEED ITEM/in/NAME", "/weights" (of the
sum whose gradient is taken), "/value", or "/gradient/NAME". Inputs of whole numbers and of bool have no gradient.
results.json has the names of the items.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.nn import functional

MODES, PADDINGS = ("bilinear", "nearest"), ("zeros", "border", "reflection")
CELLS = 10  # further indices are outside of the grid
SHAPE, STRIDED = (4, 6, 5), {"3/2": (3, 2, 1), "2/2": (2, 2, 0)}  # kernel, stride, padding
LEVELS = ((4, 6), (2, 3))  # rows and columns
MODULE = (2, 3)  # heads, and points of each level


def normal(rng, *shape):
    """Returns random numbers in float32."""
    return rng.normal(size=shape).astype(np.float32)


def first(x):
    """Moves the last dimension, of features, behind the batch."""
    return x.movedim(-1, 1)


def last(x):
    """Moves the features behind all dimensions."""
    return x.movedim(1, -1)


def sampled(mode, padding, corners):
    """Returns grid_sample for maps whose features are last."""

    def run(x, grid):
        flat = grid[:, None]
        found = functional.grid_sample(first(x), flat, mode=mode, padding_mode=padding, align_corners=corners)
        return last(found)[:, 0]

    return run


def scattered(reduce):
    """Returns a reduction of the points of each cell, with 0 for empty cells."""

    def run(x, index):
        rows = []
        for one, at in zip(x, index, strict=True):
            inside = at < CELLS
            at = at[inside, None].expand(-1, one.shape[-1])
            empty = torch.zeros(CELLS, one.shape[-1], dtype=one.dtype)
            rows.append(empty.scatter_reduce(0, at, one[inside], reduce, include_self=False))
        return torch.stack(rows)

    return run


def lifted(features, depth, index):
    """Sums the outer products of features and depths in cells."""
    cloud = (features[:, :, None] * depth[..., None]).flatten(1, 2)
    return scattered("sum")(cloud, index.flatten(1))


def deformable(level0, level1, points, weights):
    """The formula of Zhu et al. 2021 (arXiv:2010.04159), equation 3, without its linear layers."""
    rows = []
    for b in range(len(level0)):
        heads = []
        for h in range(points.shape[2]):
            total = 0
            for number, level in enumerate((level0, level1)):
                grid = 2 * points[b, :, h, number][None] - 1
                found = functional.grid_sample(first(level[b : b + 1, :, :, h]), grid, align_corners=False)
                total = total + (found[0] * weights[b, :, h, number]).sum(-1).T
            heads.append(total)
        rows.append(torch.cat(heads, -1))
    return torch.stack(rows)


def module(queries, references, level0, level1, **layers):
    """The formula with its linear layers: values, offsets in cells, weights, and the result."""

    def linear(name, x):
        return x @ layers[f"{name}_kernel"] + layers[f"{name}_bias"]

    lead = (*queries.shape[:2], MODULE[0], len(LEVELS), MODULE[1])
    values = [linear("value", level).unflatten(-1, (MODULE[0], -1)) for level in (level0, level1)]
    weights = linear("weight", queries).unflatten(-1, (MODULE[0], -1)).softmax(-1).reshape(lead)
    cells = torch.tensor([(columns, rows) for rows, columns in LEVELS])[:, None]
    points = references[:, :, None, None, None] + linear("offset", queries).reshape(*lead, 2) / cells
    return linear("out", deformable(*values, points, weights))


def chamfer(a, b):
    """Returns the mean squared distance to the nearest point, both ways."""
    square = ((a[:, :, None] - b[:, None]) ** 2).sum(-1)
    return square.min(2).values.mean(1) + square.min(1).values.mean(1)


def dense(index, features, shape=SHAPE):
    """Returns the grid of sparse sites, and where it has a site; an index outside of it is padding."""
    cells = int(np.prod(shape))
    grids, seen = [], []
    for at, one in zip(index, features, strict=True):
        inside = at < cells
        grid = torch.zeros(cells, one.shape[-1], dtype=one.dtype)
        grids.append(grid.index_add(0, at[inside], one[inside]).reshape(*shape, -1))
        seen.append(torch.zeros(cells, dtype=one.dtype).index_fill(0, at[inside], 1).reshape(*shape, 1))
    return first(torch.stack(grids)), first(torch.stack(seen))


def submanifold(index, features, kernel):
    """Returns a convolution at the sites of its input, on a dense grid."""
    grid, seen = dense(index, features)
    return last(functional.conv3d(grid, kernel.permute(4, 3, 0, 1, 2), padding=1) * seen)


def strided(name):
    """Returns a convolution at each site that an input reaches, on a dense grid."""
    size, stride, padding = STRIDED[name]

    def run(index, features, kernel):
        grid, seen = dense(index, features)
        found = functional.conv3d(grid, kernel.permute(4, 3, 0, 1, 2), stride=stride, padding=padding)
        reached = functional.conv3d(seen, torch.ones(1, 1, size, size, size), stride=stride, padding=padding) > 0
        return last(found * reached)

    return run


def inverse(coarse, features, kernel, fine):
    """Returns a transposed convolution at given sites, on a dense grid."""
    grid, _ = dense(coarse, features, tuple((size + 1) // 2 for size in SHAPE))
    found = functional.conv_transpose3d(grid, kernel.permute(3, 4, 0, 1, 2), stride=2, padding=1, output_padding=1)
    found = found[:, :, : SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return last(found * dense(fine, torch.ones(*fine.shape, 1))[1])


def sites(rng, shape, count, capacity):
    """Returns sorted indices of random sites, then padding."""
    cells = int(np.prod(shape))
    rows = [np.sort(rng.choice(cells, count, replace=False)) for _ in range(2)]
    return np.stack([np.concatenate([row, np.full(capacity - count, cells)]) for row in rows]).astype(np.int32)


def points_of_grid(rng):
    """Returns points in and around a map of 4 rows and 5 columns; some are on centres, on edges and far outside."""
    points = rng.uniform(-1.6, 1.6, (2, 24, 2))
    points[:, :4] = [[-1, 1], [1, -1], [-0.8, 0.25], [0, 0]]
    points[:, 4:6] = [[-7.3, 5.9], [3.3, -4.1]]
    return points.astype(np.float32)


def items(rng):
    """Yields (name, inputs, function)."""
    x, grid = normal(rng, 2, 4, 5, 3), points_of_grid(rng)
    for mode in MODES:
        for padding in PADDINGS:
            for corners in (False, True):
                yield f"grid_sample {mode} {padding} {corners}", {"x": x, "grid": grid}, sampled(mode, padding, corners)
    x, index = normal(rng, 2, 40, 3), rng.integers(0, CELLS + 3, (2, 40), np.int32)
    for reduce in ("sum", "mean", "amax"):
        yield f"scatter {reduce}", {"x": x, "index": index}, scattered(reduce)
    inputs = {"features": normal(rng, 2, 7, 3), "depth": rng.random((2, 7, 4), np.float32)}
    yield "lift_splat", {**inputs, "index": rng.integers(0, CELLS + 3, (2, 7, 4), np.int32)}, lifted
    levels = {f"level{number}": normal(rng, 2, *level, 2, 3) for number, level in enumerate(LEVELS)}
    points = rng.uniform(-0.2, 1.2, (2, 5, 2, 2, 3, 2)).astype(np.float32)
    yield "deformable", {**levels, "points": points, "weights": normal(rng, 2, 5, 2, 2, 3)}, deformable
    yield "chamfer", {"a": normal(rng, 2, 6, 3), "b": normal(rng, 2, 9, 3)}, chamfer
    fine = sites(rng, SHAPE, 20, 24)
    features = normal(rng, 2, 24, 3)
    inputs = {"index": fine, "features": features, "kernel": normal(rng, 3, 3, 3, 3, 4)}
    yield "submanifold", inputs, submanifold
    for name, (size, _, _) in STRIDED.items():
        inputs = {"index": fine, "features": features, "kernel": normal(rng, size, size, size, 3, 4)}
        yield f"strided {name}", inputs, strided(name)
    coarse = sites(rng, tuple((size + 1) // 2 for size in SHAPE), 9, 11)
    inputs = {"coarse": coarse, "features": normal(rng, 2, 11, 3), "kernel": normal(rng, 3, 3, 3, 3, 4), "fine": fine}
    yield "inverse", inputs, inverse
    features, size = 4, MODULE[0] * len(LEVELS) * MODULE[1]
    inputs = {f"level{number}": normal(rng, 2, *level, features) for number, level in enumerate(LEVELS)}
    inputs |= {"queries": normal(rng, 2, 5, features), "references": rng.random((2, 5, 2), np.float32)}
    for name, outputs in {"value": features, "offset": 2 * size, "weight": size, "out": features}.items():
        inputs |= {f"{name}_kernel": normal(rng, features, outputs), f"{name}_bias": normal(rng, outputs)}
    yield "module of deformable attention", inputs, module


def suppressed(rng):
    """Yields (name, inputs, value) of non-maximum suppression and overlaps by torchvision, which have no gradient."""
    low = rng.uniform(0, 6, (30, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.5, 4, (30, 2))], -1).astype(np.float32)
    scores, labels = rng.permutation(30).astype(np.float32) / 30, rng.integers(0, 2, 30, np.int32)
    inputs = {"boxes": boxes, "scores": scores, "labels": labels}
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    for name, kept in {
        "nms": torchvision.ops.nms(tensors["boxes"], tensors["scores"], 0.4),
        "nms of classes": torchvision.ops.batched_nms(*tensors.values(), 0.4),
    }.items():
        yield name, inputs, functional.pad(kept, (0, len(boxes) - len(kept)), value=-1)
    yield "box_iou", inputs, torchvision.ops.box_iou(tensors["boxes"], tensors["boxes"])


def main(folder):
    """Writes inputs, values and gradients."""
    stored, names = {}, {}
    for seed in json.loads((folder / "inputs.json").read_text())["sets"]:
        rng = np.random.default_rng(seed)
        for name, inputs, function in items(rng):
            names[name] = True
            tensors = {
                key: torch.tensor(x) if x.dtype != np.int32 else torch.tensor(x).long() for key, x in inputs.items()
            }
            floats = [key for key, x in tensors.items() if x.is_floating_point()]
            for key in floats:
                tensors[key].requires_grad_()
            value = function(**tensors)
            weights = normal(rng, *value.shape)
            gradients = torch.autograd.grad(
                (value * torch.tensor(weights)).sum(), [tensors[key] for key in floats], allow_unused=True
            )
            stored |= {f"{seed} {name}/in/{key}": x for key, x in inputs.items()}
            stored |= {f"{seed} {name}/weights": weights, f"{seed} {name}/value": value.detach().numpy()}
            for key, gradient in zip(floats, gradients, strict=True):
                found = np.zeros_like(inputs[key]) if gradient is None else gradient.numpy()
                stored[f"{seed} {name}/gradient/{key}"] = found
        for name, inputs, value in suppressed(rng):
            names[name] = True
            stored |= {f"{seed} {name}/in/{key}": x for key, x in inputs.items()}
            stored[f"{seed} {name}/value"] = value.numpy()
    np.savez_compressed(folder / "perception.npz", **stored)
    (folder / "results.json").write_text(json.dumps(list(names)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
