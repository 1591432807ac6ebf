"""The decoder with a mixture of experts instead of each feed-forward part (Fedus et al. 2022)."""

import dataclasses
from typing import ClassVar

from engine import Loss, Mean, layers

from .decoder import Block, Decoder, LanguageModel


class MoeBlock(Block):
    """One layer: attention and experts, with the auxiliary losses of the router."""

    auxiliary: ClassVar[tuple[str, ...]] = ("balance", "router_z", "dropped")

    def make_feed_forward(self, config, rngs):
        return layers.Experts(
            config.width, config.hidden, config.experts, config.top_k, capacity_factor=config.capacity_factor, rngs=rngs
        )

    def feed(self, x, weight):
        return self.feed_forward(x, weight)


@dataclasses.dataclass
class MoeLanguageModel(LanguageModel):
    """A language model whose loss includes penalties for unbalanced experts and for large router logits."""

    hidden: int = 512  # hidden size of an expert
    experts: int = 8
    top_k: int = 2
    capacity_factor: float | None = 1.25  # None: dropless
    balance: float = 0.01  # weight of the balance loss
    router_z: float = 0.001  # weight of the router's z-loss

    def build(self, rngs):
        return Decoder(self, MoeBlock, rngs)

    def loss(self, model, batch, rng):
        losses, auxiliary = model(batch, rng)
        nats = Mean.of(losses, batch["weight"])
        penalty = (self.balance * auxiliary["balance"] + self.router_z * auxiliary["router_z"]) / self.depth
        dropped = Mean(auxiliary["dropped"] / self.depth, nats.weight)
        return Loss(nats.total + penalty, nats.weight, {"nats": nats, "dropped": dropped})
