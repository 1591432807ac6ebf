"""Downloads weights by their name on Hugging Face: `OWNER/NAME`, or `OWNER/NAME@REVISION`, into its cache.

Only safetensors files, their index and `config.json` are downloaded: never code, never pickles. A local path that
exists is used as it is.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from engine.base.errors import CheckpointError
from engine.base.extras import install_command
from engine.checkpoint.warm_start import FOREIGN
from engine.cluster import group

NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?")
SUFFIXES = (".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".pkl")  # of files, which no name has
FILES = ("*.safetensors", "*.safetensors.index.json", "config.json")
LEFT_OUT = ("*/*", "consolidated*")  # folders of other programs, and a second copy of all arrays
DOWNLOAD_S = 24 * 3600.0  # large models on slow connections


@dataclass(frozen=True)
class Located:
    """Weights on this host: their path, and what to call them: the name with its revision, or the path itself."""

    path: Path
    name: str


def locate(text: str, where: str) -> Located:
    """Returns the weights that a path or a name means, downloaded if they are not in the cache.

    Args:
        text: without "hf:".
        where: the config field or the function that names it, for errors.

    Raises:
        CheckpointError: there is no such path or name, or it cannot be downloaded.
    """
    path = Path(os.path.expanduser(text))
    found = NAME.fullmatch(text)
    if path.exists():
        return Located(path, str(path))
    if found is None or text.endswith(SUFFIXES):
        raise CheckpointError(
            f"{where} = {FOREIGN}{text}: no such file or folder. Give a safetensors file, a folder with "
            "model.safetensors or with an index and its files, or a name on Hugging Face: OWNER/NAME."
        )
    folder = _download(text, found["name"], found["revision"], where)
    return Located(folder, f"{FOREIGN}{found['name']}@{folder.name}")


def locate_everywhere(text: str, where: str) -> Located:
    """Does the same in every process of a run, with the revision that the primary has found.

    The primary downloads first. The others then find its files where storage is shared; elsewhere, the locks of the
    cache let one process of each host download them.

    Raises:
        CheckpointError: as for `locate`.
    """
    chosen: list[Located] = []

    def choose() -> str:
        chosen.append(locate(text, where))
        return chosen[0].name

    name = group.run_on_primary(choose, f"the weights of {where}", DOWNLOAD_S)
    if not name.startswith(FOREIGN):
        return Located(Path(name), name)  # never downloaded here because this host lacks the folder
    here = chosen[0] if chosen else locate(name.removeprefix(FOREIGN), where)
    group.meet(f"the weights of {where} on each host", DOWNLOAD_S)
    return here


def _download(text: str, name: str, revision: str | None, where: str) -> Path:
    """Returns the folder of a snapshot in the cache. The name of the folder is the hash of its commit."""
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError as error:
        raise _unavailable(text, where, f"it needs huggingface_hub: {install_command('hub')}") from error
    files = {"allow_patterns": list(FILES), "ignore_patterns": list(LEFT_OUT)}
    try:
        return Path(snapshot_download(name, revision=revision, **files))
    except errors.RevisionNotFoundError as error:
        raise _unavailable(text, where, f"{name} has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:  # of HTTP, the same answer for both
        raise _unavailable(text, where, "it does not exist, or needs `hf auth login`") from error
    except Exception as error:  # of huggingface_hub, of its HTTP client, of the disk
        reason = str(error).split("\n")[0].strip() or type(error).__name__
        raise _unavailable(text, where, f"it cannot be downloaded ({reason})") from error


def _unavailable(text: str, where: str, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{where} = {FOREIGN}{text}: no such file or folder here, and as a name on Hugging Face, {problem}. Check the "
        "name; or download its safetensors files on another machine, and give the path of their folder."
    )
