"""Names the values that a metric cannot count, from sums alone, since training metrics have nothing but sums.

Each example gives one such value: its bits, which are summed over the examples, and a count. If all examples of a
bucket have the same value, each summed bit is 0 or the count, and the value can be read from the sums.
"""

import jax
import jax.numpy as jnp
import numpy as np

BITS = 32
BUCKETS = 4  # by the value modulo 4, so that consecutive values such as 10, 11, 12 stay apart
SUMS = BUCKETS * (1 + BITS)


def encode(values: jax.Array, odd: jax.Array) -> jax.Array:
    """Returns what `describe` needs, int32 `[batch, SUMS]`; to be traced.

    Args:
        values: int32 or float32 `[batch, n]`.
        odd: bool `[batch, n]`, True for the values that cannot be counted; the first of each example is kept.
    """
    first = jnp.argmax(odd, axis=1, keepdims=True)
    value, found = jnp.take_along_axis(values, first, axis=1), odd.any(axis=1)
    bits = jax.lax.bitcast_convert_type(value, jnp.int32) >> jnp.arange(BITS) & 1
    row = jnp.concatenate([jnp.ones_like(bits[:, :1]), bits], axis=1)
    whole = jnp.nan_to_num(value).astype(jnp.int32) if jnp.issubdtype(value.dtype, jnp.floating) else value
    bucket = jax.nn.one_hot(whole[:, 0] % BUCKETS, BUCKETS, dtype=jnp.int32) * found[:, None]
    return (bucket[:, :, None] * row[:, None, :]).reshape(-1, SUMS)


def describe(sums: np.ndarray, dtype: str) -> str:
    """Returns the values and in how many examples they are, such as "7 (in 3 examples)"; "" if there are none.

    Args:
        sums: the sums of `encode`, `[SUMS]`.
        dtype: that of the values, "int32" or "float32".
    """
    known, mixed, total = [], 0, 0.0
    for count, *bits in np.asarray(sums, np.int64).reshape(BUCKETS, 1 + BITS).tolist():
        if count and all(bit in (0, count) for bit in bits):
            pattern = sum(1 << i for i, bit in enumerate(bits) if bit)
            known.append((np.array(pattern, np.uint32).view(dtype).item(), count))
        elif count:
            mixed += count
            total += sum(bit << i for i, bit in enumerate(bits)) - (bits[-1] << BITS)
    known.sort(key=lambda pair: (np.isnan(pair[0]), pair[0]))
    parts = [f"{value if dtype == 'int32' else f'{value:.6g}'} (in {_examples(count)})" for value, count in known]
    if mixed:
        mean = f", {total / mixed:.6g} on average" if dtype == "int32" else ""
        parts.append(f"several {'other ' if known else ''}values{mean} (in {_examples(mixed)})")
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _examples(count: int) -> str:
    return f"{count:,} example{'s' if count > 1 else ''}"
