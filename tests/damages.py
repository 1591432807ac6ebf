"""What happens to a file of a cache on a disk that fails, or by the hand of a user."""

import os
from pathlib import Path


def flipped_bit(path: Path) -> None:
    """Flips the last bit."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncated(path: Path) -> None:
    """Cuts off the last byte."""
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    """Cuts off everything."""
    os.truncate(path, 0)


def pipe(path: Path) -> None:
    """Puts a pipe in its place, whose reader would wait."""
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    """Puts a folder in its place."""
    path.unlink()
    (path / "file").mkdir(parents=True)


def swap(one: Path, two: Path) -> None:
    """Gives each of two files the name of the other."""
    aside = one.with_name("aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


ALL = [flipped_bit, truncated, empty, pipe, folder]
