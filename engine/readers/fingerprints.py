"""Hashes lists of names for fingerprints."""

import hashlib
from collections.abc import Iterable


def digest(texts: Iterable[str]) -> str:
    """Returns a hash of texts, which may contain any bytes of file names."""
    found = hashlib.blake2b(digest_size=16)
    for text in texts:
        found.update(text.encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()
