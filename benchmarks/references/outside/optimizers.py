"""Runs optimizers of torch for twenty steps from given parameters, with given gradients.

Imports no engine. FOLDER/inputs.json has the names of optimizers as "sets". The program draws parameters and gradients,
which have few bits so that they are the same in half precision, and writes them to FOLDER/given.npz. For each optimizer
it writes FOLDER/NAME/arrays.npz: each parameter after the steps of `STEPS`, as `NAME@STEP`.

Files have the layout of the engine, [in, out]: `heads` is [in, heads, size], and `stack` two layers. torch has a matrix
[out, in] for each of them. Settings that make a package compute what its paper says:

- NAdam: `momentum_decay` is so large that the momentum has no warm-up, which Dozat (2016) has and Loshchilov's AdamW
  with Nesterov momentum has not.
- LAMB (timm): without clipping by the global norm, and with a trust ratio for vectors too.
- Adafactor: torch multiplies the weight decay by the learning rate; the paper has no decay.
- Schedule-free: both the weights at which gradients are taken and, as `NAME/average@STEP`, their average.
- Muon: torch's own for matrices, and AdamW for the vector, as in Jordan's repository.
- SOAP (pytorch_optimizer, a copy of the authors' file): the first gradient only starts the basis. Sides longer than
  `LARGEST` have no basis. The first basis of a side that is longer than the other one is arbitrary, since the
  covariance of one gradient has not the full rank: so the others are square. The decay comes before the update, as in
  AdamW, where the package has it after the update. The vector has AdamW; the package leaves out its first gradient.
- MARS (timm): clips the corrected gradient of each matrix to norm 1, and leaves vectors to AdamW.
- Adam-mini: the partition of the authors' package by the names of the parameters, one rate for each output of a matrix
  and for each head of the query. The vector is a bias, which has Adam and no decay.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

import adam_mini
import lion_pytorch
import numpy as np
import pytorch_optimizer
import schedulefree
import timm.optim
import torch

SHAPES = {"tall": (16, 6), "wide": (5, 18), "heads": (8, 2, 4), "stack": (2, 6, 6), "vector": (7,)}
STEPS = (1, 2, 5, 20)
LARGEST = 10
RATE, DECAY = 0.05, 0.1


def draw(folder):
    """Returns name -> parameter, and name -> gradients [steps, ...], which it also writes."""
    rng = np.random.default_rng(42)
    params = {name: rng.normal(0, 0.25, shape).astype(np.float16) for name, shape in SHAPES.items()}
    gradients = {name: rng.normal(size=(STEPS[-1], *shape)).astype(np.float16) for name, shape in SHAPES.items()}
    given = {**params, **{f"{name}@gradients": x for name, x in gradients.items()}}
    np.savez_compressed(folder / "given.npz", **given)
    return params, gradients


def split(name, x):
    """Yields the matrices of torch for a parameter or a gradient, with their names."""
    x = torch.from_numpy(np.ascontiguousarray(x)).float()
    if name == "stack":
        yield from ((f"mlp.stack.{i}", layer.T.contiguous()) for i, layer in enumerate(x))
    elif name == "vector":
        yield "bias", x
    else:
        yield f"{'query' if name == 'heads' else 'mlp'}.{name}", x.reshape(len(x), -1).T.contiguous()


def join(name, matrices):
    """Returns a parameter in the layout of the engine."""
    found = [x.detach().numpy().T for x in matrices]
    return np.stack(found) if name == "stack" else found[0].reshape(SHAPES[name]).copy()


class Both:
    """An optimizer of the matrices and one of the vectors."""

    def __init__(self, params, first, second):
        self.all = [first([p for p in params if p.ndim > 1]), second([p for p in params if p.ndim == 1])]

    def step(self):
        """Updates all parameters."""
        for each in self.all:
            each.step()


def mini(named):
    """Returns Adam-mini; a head of the query has 4 x 8 numbers."""
    settings = {"betas": (0.9, 0.95), "weight_decay": DECAY, "dim": 8, "n_heads": 2, "verbose": False}
    return adam_mini.Adam_mini(named, lr=RATE, **settings)


def muon(params):
    """Returns Muon for matrices and AdamW for vectors."""
    return Both(
        params,
        lambda matrices: torch.optim.Muon(matrices, lr=RATE, weight_decay=DECAY, momentum=0.95),
        lambda others: torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY),
    )


class Soap:
    """SOAP whose matrices decay before each update."""

    def __init__(self, params):
        self.params, self.count = params, 0
        settings = {"lr": RATE, "betas": (0.95, 0.95), "precondition_frequency": 10, "max_precondition_dim": LARGEST}
        self.soap = pytorch_optimizer.SOAP(params, weight_decay=0.0, **settings)

    def step(self):
        """Updates the matrices."""
        with torch.no_grad():
            for p in self.params if self.count else []:
                p.mul_(1 - RATE * DECAY)
        self.count += 1
        self.soap.step()


def soap(params):
    """Returns SOAP for matrices and AdamW for vectors."""
    return Both(params, Soap, lambda others: torch.optim.AdamW(others, lr=RATE, betas=(0.95, 0.95), weight_decay=DECAY))


BUILD = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=RATE, weight_decay=DECAY),
    "nadamw": lambda params: torch.optim.NAdam(
        params, lr=RATE, weight_decay=DECAY, momentum_decay=1e9, decoupled_weight_decay=True
    ),
    "lion": lambda params: lion_pytorch.Lion(params, lr=RATE, betas=(0.9, 0.99), weight_decay=DECAY),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=RATE, weight_decay=DECAY),
    "lamb": lambda params: timm.optim.Lamb(
        params, lr=RATE, weight_decay=DECAY, eps=1e-6, max_grad_norm=None, always_adapt=True
    ),
    "ademamix": lambda params: pytorch_optimizer.AdEMAMix(
        params, lr=RATE, weight_decay=DECAY, weight_decouple=True, betas=(0.9, 0.999, 0.9999), alpha=5.0
    ),
    "schedule_free_sgd": lambda params: schedulefree.SGDScheduleFree(params, lr=RATE, weight_decay=DECAY),
    "schedule_free_adamw": lambda params: schedulefree.AdamWScheduleFree(params, lr=RATE, weight_decay=DECAY),
    "muon": muon,
    "soap": soap,
    "mars": lambda params: timm.optim.Mars(
        params, lr=RATE, betas=(0.95, 0.99), betas_1d=(0.9, 0.95), weight_decay=DECAY, gamma=0.025
    ),
    "adam_mini": mini,
}
"""Name -> function of the parameters that returns an optimizer; that of Adam-mini takes them with their names."""


def run(item, folder, params, gradients):
    """Runs one optimizer, and writes its parameters."""
    named = {name: dict(split(name, x)) for name, x in params.items()}
    flat = {key: torch.nn.Parameter(x) for parts in named.values() for key, x in parts.items()}
    optimizer = BUILD[item](list(flat.items()) if item == "adam_mini" else list(flat.values()))
    averages = item.startswith("schedule_free")
    if averages:
        optimizer.train()
    found = {}
    for step in range(1, STEPS[-1] + 1):
        given = {key: x for name in params for key, x in split(name, gradients[name][step - 1])}
        for key, x in flat.items():
            x.grad = given[key]
        optimizer.step()
        if step in STEPS:
            found |= {f"{name}@{step}": join(name, [flat[key] for key in parts]) for name, parts in named.items()}
            if averages:
                optimizer.eval()
                found |= {
                    f"{name}/average@{step}": join(name, [flat[key] for key in parts]) for name, parts in named.items()
                }
                optimizer.train()
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "arrays.npz", **found)


def main(folder):
    """Runs the optimizers of a folder."""
    params, gradients = draw(folder)
    for item in json.loads((folder / "inputs.json").read_text())["sets"]:
        run(item, folder / item, params, gradients)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "timm", "pytorch-optimizer")}
    (folder / "results.json").write_text(json.dumps(versions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    main(Path(sys.argv[1]))
