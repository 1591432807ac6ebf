"""First weights and data that every library computes alike, without a file: an integer hash of the index.

So a model with a billion parameters gets its weights on the device, and all loops start with the same. This file
imports numpy only.
"""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

NOISES = 32
"""Different backgrounds of images: the hash takes about 20 ns for a pixel."""


def hashed(index: Any, name: str, number: Callable[[int], Any] = int) -> Any:
    """Returns 32 random bits for each index: the finalizer of MurmurHash3.

    Args:
        index: integers of 32 unsigned or 64 bits, in any library.
        name: name of the array, for which the bits are drawn.
        number: makes a constant that the library can combine with the integers.
    """
    mask = number(0xFFFFFFFF)
    x = (index ^ number(zlib.crc32(name.encode()))) & mask
    x = ((x ^ (x >> number(16))) * number(0x85EBCA6B)) & mask
    x = ((x ^ (x >> number(13))) * number(0xC2B2AE35)) & mask
    return x ^ (x >> number(16))


def random_bits(name: str, size: int) -> np.ndarray:
    """Returns random bits `[size]` as uint64 below 2**32."""
    return hashed(np.arange(size, dtype=np.uint64), name, np.uint64)


def factor(deviation: float) -> float:
    """Returns the factor that gives uniform numbers in [-1, 1) this standard deviation, as a float32."""
    return float(np.float32(deviation * 3**0.5))


def markov_tokens(rows: int, time: int, vocabulary: int) -> np.ndarray:
    """Returns int32 tokens `[rows, time + 1]` of a Markov chain with four successors of each token, to be learnt."""
    jump = (random_bits("jump", vocabulary * 4) % vocabulary).astype(np.int32).reshape(vocabulary, 4)
    choice = (random_bits("choice", time * rows) % 4).astype(np.int8).reshape(time, rows)
    tokens = np.zeros((rows, time + 1), np.int32)
    for t in range(time):
        tokens[:, t + 1] = jump[tokens[:, t], choice[t]]
    return tokens


def images(rows: int, size: int, classes: int) -> dict[str, np.ndarray]:
    """Returns `image` uint8 `[rows, size, size]`, noise whose brightness depends on the class, and `label` int32."""
    label = (random_bits("label", rows) % classes).astype(np.int32)
    noise = (random_bits("image", NOISES * size * size) % 128).astype(np.uint8).reshape(NOISES, size, size)
    brightness = (label * (127 // classes)).astype(np.uint8)
    return {"image": noise[np.arange(rows) % NOISES] + brightness[:, None, None], "label": label}
