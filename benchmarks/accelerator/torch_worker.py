"""A model of `models.py` in a hand-written PyTorch loop: a worker, whose argument is `jobs.Job` as JSON.

It needs torch and numpy, not the engine. Weights and AdamW's state are float32; activations and products have the
precision of the model, so that it computes as the other loops do. `torch.compile` compiles a layer, which all layers
share, and the loss.
"""

import math
import time

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.accelerator import jobs
from benchmarks.accelerator.first_weights import factor, hashed
from benchmarks.accelerator.models import (
    LEARNING_RATE,
    ONES,
    STACK,
    WEIGHT_DECAY,
    ZEROS,
    Cnn,
    Decoder,
    Model,
    Vit,
    decays,
)
from benchmarks.worker import rss_peak, serve

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


def first_weight(name, shape, deviation, first=0):
    """Returns the first values of a weight, those from index `first`."""
    if deviation in (ONES, ZEROS):
        return torch.full(shape, float(deviation == ONES), device=DEVICE)
    index = torch.arange(first, first + math.prod(shape), dtype=torch.int64, device=DEVICE)
    uniform = (hashed(index, name) >> 8).float() * 2**-23 - 1
    return (uniform * factor(deviation)).reshape(shape)


def first_weights(model: Model):
    """Returns the weights by name, and those of the layers by layer and the rest of the name."""
    weights, layers = {}, []
    for name, (shape, deviation) in model.weights.items():
        if not name.startswith(STACK):
            weights[name] = first_weight(name, shape, deviation).requires_grad_()
            continue
        for i in range(shape[0]):
            if i == len(layers):
                layers.append({})
            value = first_weight(name, shape[1:], deviation, i * math.prod(shape[1:]))
            layers[i][name.removeprefix(STACK)] = value.requires_grad_()
    return weights, layers


def rotate(x, cos, sin):
    """Rotary positions."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def attend(q, k, v, causal):
    """Attention of `[batch, time, heads, head_dim]`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def norm(x, scale):
    """RMSNorm."""
    return functional.rms_norm(x.float(), x.shape[-1:], scale, 1e-6).to(x.dtype)


def layer_norm(x, scale, bias):
    """LayerNorm."""
    return functional.layer_norm(x.float(), x.shape[-1:], scale, bias, 1e-6).to(x.dtype)


@torch.compile
def decoder_layer(x, cos, sin, heads, w):
    """A layer of the decoder."""
    split = (*x.shape[:2], heads, -1)
    y = norm(x, w["norms/0/scale"])
    q, k, v = ((y @ w[f"attention/{name}/kernel"].to(x.dtype)).view(split) for name in ("query", "key", "value"))
    y = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, causal=True)
    x = x + y.reshape(x.shape) @ w["attention/out/kernel"].to(x.dtype)
    y = norm(x, w["norms/1/scale"])
    gate, up, down = (w[f"feed_forward/{name}/kernel"].to(x.dtype) for name in ("gate", "up", "down"))
    return x + (functional.silu(y @ gate) * (y @ up)) @ down


@torch.compile
def decoder_loss(x, scale, head, targets):
    """The mean loss of the last activations."""
    logits = norm(x, scale) @ head.to(x.dtype)
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def decoder(model: Decoder, weights, layers, batch):
    """The loss of tokens `[batch, time + 1]`."""
    head_dim = model.width // model.heads
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2, device=DEVICE) / head_dim)
    angles = torch.arange(model.time, device=DEVICE)[:, None] * frequencies
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    tokens = batch["tokens"].long()
    x = functional.embedding(tokens[:, :-1], weights["embed/table"]).to(getattr(torch, model.precision))
    for w in layers:
        x = decoder_layer(x, cos, sin, model.heads, w)
    return decoder_loss(x, weights["norm/scale"], weights["head/kernel"], tokens[:, 1:])


@torch.compile
def vit_layer(x, heads, w):
    """A layer of the vision transformer."""
    split = (*x.shape[:2], heads, -1)
    y = layer_norm(x, w["norms/0/scale"], w["norms/0/bias"])
    q, k, v = ((y @ w[f"attention/project/{i}/kernel"].to(x.dtype)).view(split) for i in range(3))
    x = x + attend(q, k, v, causal=False).reshape(x.shape) @ w["attention/out/kernel"].to(x.dtype)
    y = layer_norm(x, w["norms/1/scale"], w["norms/1/bias"])
    y = y @ w["up/kernel"].to(x.dtype) + w["up/bias"].to(x.dtype)
    y = functional.gelu(y, approximate="tanh")
    return x + y @ w["down/kernel"].to(x.dtype) + w["down/bias"].to(x.dtype)


def vit(model: Vit, weights, layers, batch):
    """The loss of images `[batch, size, size]`."""
    dtype, side = getattr(torch, model.precision), model.size // model.patch
    x = batch["image"].to(dtype).view(-1, side, model.patch, side, model.patch) / 127.5 - 1
    x = x.transpose(2, 3).reshape(len(x), side * side, -1)
    x = x @ weights["embed/kernel"].to(dtype) + weights["embed/bias"].to(dtype) + weights["positions"].to(dtype)
    for w in layers:
        x = vit_layer(x, model.heads, w)
    x = layer_norm(x, weights["norm/scale"], weights["norm/bias"]).mean(1)
    logits = x @ weights["head/kernel"].to(dtype) + weights["head/bias"].to(dtype)
    return functional.cross_entropy(logits.float(), batch["label"].long())


@torch.compile
def cnn_loss(image, label, w):
    """The loss of images `[batch, 28, 28]`, padded as "SAME" of JAX. Without the averages that evaluation would use."""
    x = (image[:, None].float() / 255 - 0.286) / 0.353
    x = x.contiguous(memory_format=torch.channels_last)
    for i, padding in ((1, (1, 2, 1, 2)), (2, (0, 1, 0, 1))):
        x = functional.conv2d(functional.pad(x, padding), w[f"conv{i}/kernel"].permute(3, 2, 0, 1), stride=2)
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = ((x * x).mean((0, 2, 3), keepdim=True) - mean * mean).clamp(min=0)
        scale = torch.rsqrt(variance + 1e-5) * w[f"norm{i}/scale"][:, None, None]
        x = functional.relu((x - mean) * scale + w[f"norm{i}/bias"][:, None, None])
    x = functional.relu(x.permute(0, 2, 3, 1).flatten(1) @ w["dense/kernel"] + w["dense/bias"])
    return functional.cross_entropy(x @ w["head/kernel"] + w["head/bias"], label.long())


def loss(model: Model, weights, layers, batch):
    """The loss of a batch."""
    if isinstance(model, Cnn):
        return cnn_loss(batch["image"], batch["label"], weights)
    if isinstance(model, Vit):
        return vit(model, weights, layers, batch)
    assert isinstance(model, Decoder)
    return decoder(model, weights, layers, batch)


def main():
    """Trains a turn at a time."""
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, as JAX does by default
    model = jobs.read_job(jobs.job_of_process()).model
    weights, layers = first_weights(model)
    groups = {True: [], False: []}
    for named in (weights, *layers):
        for name, weight in named.items():
            groups[decays(name, tuple(weight.shape))].append(weight)
    settings = [{"params": group, "weight_decay": WEIGHT_DECAY * decay} for decay, group in groups.items() if group]
    optimizer = torch.optim.AdamW(settings, lr=LEARNING_RATE, fused=True)
    arrays = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in model.data(model.rows()).items()}
    if CUDA:
        arrays = {name: x.pin_memory() for name, x in arrays.items()}
    done = 0

    def turn(steps):
        nonlocal done
        losses, begin = [], time.perf_counter()
        for _ in range(steps):
            first = done * model.batch % model.rows()
            batch = {name: x[first : first + model.batch].to(DEVICE, non_blocking=True) for name, x in arrays.items()}
            value = loss(model, weights, layers, batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.detach())
            done += 1
        if CUDA:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        return [seconds, *(float(value) for value in losses)]

    serve(turn, torch.cuda.max_memory_allocated if CUDA else rss_peak)


if __name__ == "__main__":
    main()
