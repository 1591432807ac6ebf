"""Places: the folder or file of this machine that a path means, in a config or on the command line.

Owns: the one way from an address such as `s3://bucket/runs/a` to a folder: the bucket is mounted, for this process
alone and until its end, by a program made for that. Does not own: what lies there, and who reads it.

Two processes see the same bucket through two mounts, so a mount must remember little: not for longer than a second
what a file was, and never that there was none, since processes wait for each other's files.

Terms. *Address*: scheme, bucket and the path in it. *Mount*: the bucket as a folder; a program of its own serves it.
"""

import atexit
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from engine.config.errors import RunError, did_you_mean

PROGRAMS = {"s3": "s3fs", "gs": "gcsfuse"}
"""Scheme of an address -> what mounts its buckets."""
MOUNT_S = 60.0  # until a bucket has to be there
_UNMOUNT_S = 60.0  # for what is still to be sent
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*):/(?P<full>/?)(?P<bucket>[^/]*)/*(?P<path>.*)", re.DOTALL)
_KEYS = ("/etc/passwd-s3fs", "~/.passwd-s3fs", "~/.aws/credentials")  # where s3fs looks for them, beside variables

_mounts: dict[str, Path] = {}  # scheme://bucket -> folder
_lock = threading.Lock()


def is_address(place: str | os.PathLike) -> bool:
    """Whether a place is an address; also one that has been a `Path`, which leaves one slash of `s3://`."""
    found = _ADDRESS.fullmatch(os.fspath(place))
    return found is not None and bool(found["full"] or found["scheme"] in PROGRAMS)


def local_path(place: str | os.PathLike) -> Path:
    """Returns the folder or file of this machine that a place means; its bucket is mounted when it is met first.

    The mount ends with the process, and with the thread that met the bucket first, so meet it in the main thread.

    Raises:
        RunError: the address is none, or its bucket cannot be mounted.
    """
    found = _ADDRESS.fullmatch(os.fspath(place))
    if found is None or not is_address(place):
        return Path(place)
    scheme, bucket = found["scheme"], found["bucket"]
    if scheme not in PROGRAMS or not bucket:
        known = " and ".join(f"{one}://BUCKET/PATH" for one in PROGRAMS)
        raise RunError(
            f"{os.fspath(place)}: no address that can be mounted; {known} are, and every folder of this machine."
            + did_you_mean(scheme, PROGRAMS)
        )
    with _lock:
        if (name := f"{scheme}://{bucket}") not in _mounts:
            _mounts[name] = _mount(scheme, bucket)
    return _mounts[name] / found["path"]


def shown(path: str | os.PathLike) -> str:
    """Returns a path as the user may type it, also when this process and its mounts are gone: the other way round."""
    for name, folder in _mounts.items():
        if Path(path).is_relative_to(folder):
            return f"{name}/{Path(path).relative_to(folder)}".removesuffix("/.")
    return os.fspath(path)


def mount_command(scheme: str, bucket: str, folder: Path) -> list[str]:
    """Returns the words that mount a bucket in a folder until they are ended.

    `s3`: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` name another server than Amazon's. Keys are those of the AWS
    variables and files, else of the machine's role.
    """
    if scheme == "gs":
        fresh = ["--metadata-cache-ttl-secs=1", "--metadata-cache-negative-ttl-secs=0"]
        return [PROGRAMS[scheme], "--foreground", "--implicit-dirs", *fresh, bucket, str(folder)]
    options = ["disable_noobj_cache", "stat_cache_expire=1"]
    if url := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        options += [f"url={url}", "use_path_request_style"]
    if "AWS_ACCESS_KEY_ID" not in os.environ and not any(Path(file).expanduser().exists() for file in _KEYS):
        options.append("iam_role=auto")
    return [PROGRAMS[scheme], bucket, str(folder), "-f", "-o", ",".join(options)]


def _mount(scheme: str, bucket: str) -> Path:
    program = PROGRAMS[scheme]
    if shutil.which(program) is None:
        raise RunError(
            f"{scheme}://{bucket}: {program}, which mounts such buckets, is not installed here. Install it (Debian's "
            f"package s3fs; gcsfuse from Google's), or mount the bucket yourself and give the folder's path."
        )
    folder = Path(tempfile.mkdtemp(prefix=f"convoy-{bucket}-"))
    words = mount_command(scheme, bucket, folder)
    if setpriv := shutil.which("setpriv"):  # it ends with this process, however that ends
        words = [setpriv, "--pdeathsig", "TERM", *words]
    output = tempfile.TemporaryFile()  # noqa: SIM115, as long as the program
    # In a session of its own: a signal to this process's group must not end what the last save goes to.
    process = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    atexit.register(_unmount, process, folder)
    end = time.monotonic() + MOUNT_S
    while not _answers(folder):
        if process.poll() is not None or time.monotonic() > end:
            _unmount(process, folder)
            raise RunError(
                f"{scheme}://{bucket}: {program} cannot mount it{_words_of(output)}. See that the bucket exists, that "
                "its keys are here (docs/launch.md, Buckets) and that this machine allows FUSE (/dev/fuse); or mount "
                "it yourself and give the folder's path."
            )
        time.sleep(0.02)
    return folder


def _answers(folder: Path) -> bool:
    """Whether the bucket is there: a mount that is still looking for its bucket lets a reader wait."""
    if not os.path.ismount(folder):
        return False
    try:
        os.listdir(folder)
    except OSError:
        return False
    return True


def _words_of(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    return f" ({lines[-1].strip()})" if lines else ""


def _unmount(process: subprocess.Popen, folder: Path) -> None:
    """Ends the program, which sends what is left and takes the mount away."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_UNMOUNT_S)
    process.kill()
    with contextlib.suppress(OSError):
        folder.rmdir()
