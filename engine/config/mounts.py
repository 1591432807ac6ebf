"""Places: the folder or file of this machine that a path means, in a config or on the command line.

Owns: the one way from an address such as `s3://bucket/runs/a` to a folder: the bucket is mounted, for this process
alone and until its end, by a program made for that. Does not own: what lies there, and who reads it.

Two processes see the same bucket through two mounts, so a mount must remember little: not for longer than a second
what a file was, and never that there was none, since processes wait for each other's files. It must outlive a SIGTERM
to everything that a scheduler has started, which asks the run for its last save.

Terms. *Address*: scheme, bucket and the path in it. *Mount*: the bucket as a folder; a program of its own serves it.
"""

import atexit
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from engine.config.errors import RunError, did_you_mean

PROGRAMS = {"s3": "s3fs", "gs": "gcsfuse"}
"""Scheme of an address -> what mounts its buckets."""
MOUNT_S = 60.0  # until a bucket has to be there
_UNMOUNT_S = 60.0  # for what is still to be sent
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*):/(?P<full>/?)(?P<bucket>[^/]*)/*(?P<path>.*)", re.DOTALL)
_OWNER = re.compile(r"/convoy-[^/]+-(\d+)-[^/-]+$")  # in the name of a mount's folder: the process that it is for
_KEYS = ("/etc/passwd-s3fs", "~/.passwd-s3fs", "~/.aws/credentials")  # where s3fs looks for them, beside variables


@dataclass(frozen=True)
class _Mount:
    """A bucket in a folder, and the program that serves it."""

    folder: Path
    process: subprocess.Popen


_mounts: dict[str, _Mount] = {}  # scheme://bucket -> mount
_lock = threading.Lock()


def is_address(place: str | os.PathLike) -> bool:
    """Whether a place is an address; also one that has been a `Path`, which leaves one slash of `s3://`."""
    found = _ADDRESS.fullmatch(os.fspath(place))
    return found is not None and bool(found["full"] or found["scheme"] in PROGRAMS)


def local_path(place: str | os.PathLike) -> Path:
    """Returns the folder or file of this machine that a place means; its bucket is mounted when it is met first.

    The mount ends with the process, or by `unmount`.

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
    name = f"{scheme}://{bucket}"
    with _lock:
        if name not in _mounts or _mounts[name].process.poll() is not None:
            _mounts[name] = _mount(scheme, bucket)
        return _mounts[name].folder / found["path"]


def shown(text: str | os.PathLike) -> str:
    """Returns a path, or a text that names some, as the user may type them: with addresses in the place of mounts."""
    text = os.fspath(text)
    for name, mount in list(_mounts.items()):  # another thread may be adding one
        text = text.replace(str(mount.folder), name)
    return text


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


def unmount() -> None:
    """Ends all mounts, once everything is sent; at the end of the process it is called anyway."""
    for mount in _mounts.values():
        _end(mount)
    _mounts.clear()


atexit.register(unmount)


def _mount(scheme: str, bucket: str) -> _Mount:
    program = PROGRAMS[scheme]
    if shutil.which(program) is None:
        raise RunError(
            f"{scheme}://{bucket}: {program}, which mounts such buckets, is not installed here. Install it (Debian's "
            f"package s3fs; gcsfuse from Google's), or mount the bucket yourself and give the folder's path."
        )
    for folder in _mounted():
        if (owner := _OWNER.search(folder)) and not Path(f"/proc/{owner[1]}").exists():
            _take_away(Path(folder))
    folder = Path(tempfile.mkdtemp(prefix=f"convoy-{bucket}-{os.getpid()}-")).resolve()
    output = tempfile.TemporaryFile()  # noqa: SIM115, as long as the program
    mount = _Mount(folder, _started([*_guarded(), *mount_command(scheme, bucket, folder)], output))
    late = threading.Timer(MOUNT_S, mount.process.kill)  # whoever waits for the mount then goes on with an error
    late.daemon = True
    late.start()
    while not _answers(folder):
        if mount.process.poll() is not None:
            late.cancel()
            _end(mount)
            raise RunError(
                f"{scheme}://{bucket}: {program} cannot mount it{_words_of(output)}. See that the bucket exists and "
                f"answers within {MOUNT_S:g} s, that its keys are here (docs/launch.md, Buckets) and that this machine "
                "allows FUSE (/dev/fuse); or mount it yourself and give the folder's path."
            )
        threading.Event().wait(0.02)
    late.cancel()
    return mount


def _guarded() -> list[str]:
    """The words before a program that let it outlive a SIGTERM to all, and end by SIGINT with this process."""
    env, setpriv = shutil.which("env"), shutil.which("setpriv")
    if env is None or setpriv is None:  # not on Linux
        return []
    return [env, "--ignore-signal=TERM", "--default-signal=INT", setpriv, "--pdeathsig", "INT"]


def _started(words: list[str], output: IO[bytes]) -> subprocess.Popen:
    """Starts a program from a thread that lives as long as this process, since it ends with the thread."""
    started: Future[subprocess.Popen] = Future()

    def serve() -> None:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )  # in a session of its own, which Ctrl-C does not reach
        except OSError as error:
            return started.set_exception(error)
        started.set_result(process)
        process.wait()

    threading.Thread(target=serve, name="mount", daemon=True).start()
    return started.result()


def _answers(folder: Path) -> bool:
    """Whether the bucket is there: a mount that is still looking for its bucket lets a reader wait."""
    with contextlib.suppress(OSError):
        return os.path.ismount(folder) and os.listdir(folder) is not None
    return False


def _words_of(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    return f" ({lines[-1].strip()})" if lines else ""


def _end(mount: _Mount) -> None:
    """Ends the program, which sends what is left and takes the mount away; one that does not is killed."""
    mount.process.send_signal(signal.SIGINT)
    try:
        mount.process.wait(_UNMOUNT_S)
    except subprocess.TimeoutExpired:
        mount.process.kill()
    _take_away(mount.folder)


def _take_away(folder: Path) -> None:
    """Ends a mount that its program has left behind, as s3fs does when it crashes at its end, and its folder."""
    if str(folder) in _mounted():
        subprocess.run(["fusermount", "-u", "-z", str(folder)], capture_output=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _mounted() -> list[str]:
    """The folders in which something is mounted, as this process sees it."""
    table = Path("/proc/mounts")
    return [line.split()[1] for line in table.read_text().splitlines()] if table.exists() else []
