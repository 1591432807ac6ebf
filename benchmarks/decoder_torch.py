"""The decoder of `decoder.py` in hand-written PyTorch: a worker. It needs torch and numpy, not the engine."""

import sys

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from decoder_inputs import LEARNING_RATE, STACKED, WEIGHT_DECAY, read
from torch.nn import functional  # pyright: ignore[reportMissingImports]
from worker import serve


def rotate(x, cos, sin):
    """Rotary positions."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Decoder(torch.nn.Module):
    """The same model with the given weights."""

    def __init__(self, sizes, inputs):
        super().__init__()
        self.sizes = sizes

        def weight(array):
            return torch.nn.Parameter(torch.from_numpy(np.array(array)))

        self.embed, self.head = weight(inputs["embed"]), weight(inputs["head"])
        self.blocks = torch.nn.ModuleList()
        for i in range(sizes.depth):
            block = torch.nn.ParameterDict({name: weight(inputs[name][i]) for name in STACKED})
            block["norm1"], block["norm2"] = (weight(np.ones(sizes.width, np.float32)) for _ in range(2))
            self.blocks.append(block)
        self.norm = weight(np.ones(sizes.width, np.float32))
        frequencies = 10_000.0 ** (-torch.arange(0, sizes.head_dim, 2) / sizes.head_dim)
        angles = torch.arange(sizes.time)[:, None] * frequencies
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens):
        """Logits of tokens."""
        width, (batch, time) = self.sizes.width, tokens.shape
        heads = (batch, time, self.sizes.heads, self.sizes.head_dim)
        x = self.embed[tokens]
        for w in self.blocks:
            y = functional.rms_norm(x, (width,), w["norm1"], 1e-6)
            q, k, v = ((y @ w[name]).view(heads).transpose(1, 2) for name in STACKED[:3])
            q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + y.transpose(1, 2).reshape(batch, time, width) @ w["out"]
            y = functional.rms_norm(x, (width,), w["norm2"], 1e-6)
            x = x + (functional.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]
        return functional.rms_norm(x, (width,), self.norm, 1e-6) @ self.head


def main():
    """Trains a turn at a time."""
    sizes, inputs = read(sys.argv[1])
    model, tokens, done = Decoder(sizes, inputs), torch.from_numpy(inputs["tokens"]).long(), 0
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}], lr=LEARNING_RATE
    )

    def turn(steps):
        nonlocal done
        losses = []
        for _ in range(steps):
            rows = tokens[done * sizes.batch : (done + 1) * sizes.batch]
            logits = model(rows[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            done += 1
        return [float(loss) for loss in losses]

    serve(turn)


if __name__ == "__main__":
    main()
