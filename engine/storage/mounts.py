"""Mounts buckets as local folders, for addresses such as `s3://bucket/runs/a`.

s3fs or gcsfuse mounts a bucket, for this process alone and until it ends. Processes wait for each other's files through
separate mounts, so a mount caches file attributes for at most a second and never that a file is missing. A mount
ignores SIGTERM, which a scheduler sends to ask for a last save.
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

from engine.base.errors import RunError, did_you_mean

PROGRAMS = {"s3": "s3fs", "gs": "gcsfuse"}
"""Scheme of an address -> the program that mounts its buckets."""
UNMOUNTED = (
    "Files of datasets, and checkpoints that are only read, need no mount with CONVOY_DATA_CACHE=FOLDER "
    "(docs/launch.md, Read without a mount). The directory of a run that trains needs a mount for its file locks."
)
"""Advice where a mount is missing."""
MOUNT_S = 60.0  # timeout for mounting a bucket
_UNMOUNT_S = 60.0  # timeout for sending the remaining data at unmount
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*):/(?P<full>/?)(?P<bucket>[^/]*)/*(?P<path>.*)", re.DOTALL)
_OWNER = re.compile(r"/convoy-[^/]+-(\d+)-[^/-]+$")  # the process id in the name of a mount's folder
_KEYS = ("/etc/passwd-s3fs", "~/.passwd-s3fs", "~/.aws/credentials")  # where s3fs finds keys without variables


@dataclass(frozen=True)
class _Mount:
    """A bucket in a folder, and the program that serves it."""

    folder: Path
    process: subprocess.Popen[bytes]


_mounts: dict[str, _Mount] = {}  # scheme://bucket -> mount
_copies: dict[str, str] = {}  # folder with copies of objects -> their address
_lock = threading.Lock()


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of a bucket; also as a `Path`, which keeps only one slash of `s3://`."""
    found = _ADDRESS.fullmatch(os.fspath(path))
    return found is not None and bool(found["full"] or found["scheme"] in PROGRAMS)


def split_address(path: str | os.PathLike[str]) -> tuple[str, str, str] | None:
    """Returns scheme, bucket and path of an address whose buckets can be mounted; None for any other text."""
    found = _ADDRESS.fullmatch(os.fspath(path))
    if found is None or found["scheme"] not in PROGRAMS or not found["bucket"]:
        return None
    return found["scheme"], found["bucket"], found["path"]


def local_path(path: str | os.PathLike[str]) -> Path:
    """Returns the local folder or file of a path or an address; mounts the bucket on its first use.

    The mount ends with the process, or by `unmount`.

    Raises:
        RunError: the scheme is unsupported, the bucket cannot be mounted, or the text cannot be the name of a file.
    """
    if not is_address(path):
        return _local(path)
    address = split_address(path)
    if address is None:
        supported = " and ".join(f"{known}://BUCKET/PATH" for known in PROGRAMS)
        raise RunError(
            f"{os.fspath(path)}: this address cannot be mounted. Allowed: {supported}, and local paths."
            + did_you_mean(os.fspath(path).partition(":")[0], PROGRAMS)
        )
    scheme, bucket, key = address
    name = f"{scheme}://{bucket}"
    with _lock:
        if name not in _mounts or _mounts[name].process.poll() is not None:
            _mounts[name] = _mount(scheme, bucket)
        return _mounts[name].folder / key


def _local(path: str | os.PathLike[str]) -> Path:
    with contextlib.suppress(UnicodeEncodeError):  # a surrogate that stands for no byte
        if b"\0" not in os.fsencode(path):
            return Path(path)
    raise RunError(f"{os.fspath(path)!r}: contains a character that no file name can contain. Correct the path.")


def local_text(path: str) -> str:
    """Returns an address as the text of its local path, and any other text unchanged."""
    return str(local_path(path)) if is_address(path) else path


def shown(text: str | os.PathLike[str]) -> str:
    """Returns a path, or a text that contains paths, with the addresses that users type instead of mounts."""
    text = os.fspath(text)
    folders = [(str(mount.folder), name) for name, mount in list(_mounts.items())]  # another thread may add a mount
    for folder, address in [*folders, *list(_copies.items())]:
        text = text.replace(folder, address)
    return text


def register_copy(folder: Path, address: str) -> None:
    """Records that a folder holds copies of some objects below an address (`engine/checkpoint/bucket_copy.py`)."""
    _copies[str(folder)] = address


def address_of_copy(path: Path) -> str | None:
    """Returns the address of which a path is a copy; None for any other path."""
    for folder, address in _copies.items():
        if path.is_relative_to(folder):
            return f"{address}/{path.relative_to(folder)}"
    return None


def mount_command(scheme: str, bucket: str, folder: Path) -> list[str]:
    """Returns the command that mounts a bucket in a folder until it is stopped.

    For `s3`, `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` select a server other than Amazon's. Keys come from the AWS
    variables and files, otherwise from the machine's role.
    """
    if scheme == "gs":
        cache = ["--metadata-cache-ttl-secs=1", "--metadata-cache-negative-ttl-secs=0"]
        return [PROGRAMS[scheme], "--foreground", "--implicit-dirs", *cache, bucket, str(folder)]
    options = ["disable_noobj_cache", "stat_cache_expire=1"]
    if url := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        options += [f"url={url}", "use_path_request_style"]
    if "AWS_ACCESS_KEY_ID" not in os.environ and not any(Path(file).expanduser().exists() for file in _KEYS):
        options.append("iam_role=auto")
    return [PROGRAMS[scheme], bucket, str(folder), "-f", "-o", ",".join(options)]


def unmount() -> None:
    """Unmounts all buckets after their data is sent. Also called at exit."""
    for mount in _mounts.values():
        _stop(mount)
    _mounts.clear()


atexit.register(unmount)


def _mount(scheme: str, bucket: str) -> _Mount:
    program = PROGRAMS[scheme]
    if shutil.which(program) is None:
        raise RunError(
            f"{scheme}://{bucket}: {program}, which mounts such buckets, is not installed. Install it (s3fs from "
            "Debian, gcsfuse from Google's repository), or mount the bucket yourself and give the folder's path. "
            f"{UNMOUNTED}"
        )
    for folder in _mounted_folders():
        if (owner := _OWNER.search(folder)) and not Path(f"/proc/{owner[1]}").exists():
            _remove(Path(folder))
    folder = Path(tempfile.mkdtemp(prefix=f"convoy-{bucket}-{os.getpid()}-")).resolve()
    output = tempfile.TemporaryFile()  # noqa: SIM115, open while the program runs
    mount = _Mount(folder, _start([*_signal_guard(), *mount_command(scheme, bucket, folder)], output))
    timeout = threading.Timer(MOUNT_S, mount.process.kill)  # a killed program ends the loop below with an error
    timeout.daemon = True
    timeout.start()
    while not _is_ready(folder):
        if mount.process.poll() is not None:
            timeout.cancel()
            _stop(mount)
            raise RunError(
                f"{scheme}://{bucket}: {program} cannot mount it{_last_line(output)}. Check that the bucket exists and "
                f"answers within {MOUNT_S:g} s, that its keys are set (docs/launch.md, Buckets) and that this machine "
                f"allows FUSE (/dev/fuse); or mount it yourself and give the folder's path. {UNMOUNTED}"
            )
        threading.Event().wait(0.02)
    timeout.cancel()
    return mount


def _signal_guard() -> list[str]:
    """Returns the command prefix that makes a program ignore SIGTERM and receive SIGINT when this process ends."""
    env, setpriv = shutil.which("env"), shutil.which("setpriv")
    if env is None or setpriv is None:  # not on Linux
        return []
    return [env, "--ignore-signal=TERM", "--default-signal=INT", setpriv, "--pdeathsig", "INT"]


def _start(command: list[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts a program from a thread that lives until this process ends: the death signal is bound to that thread."""
    started: Future[subprocess.Popen[bytes]] = Future()

    def serve() -> None:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )  # a new session, which Ctrl-C does not reach
        except OSError as error:
            return started.set_exception(error)
        started.set_result(process)
        process.wait()

    threading.Thread(target=serve, name="mount", daemon=True).start()
    return started.result()


def _is_ready(folder: Path) -> bool:
    """Whether the bucket can be listed. Blocks while the program connects."""
    with contextlib.suppress(OSError):
        return os.path.ismount(folder) and os.listdir(folder) is not None
    return False


def _last_line(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    return f" ({lines[-1].strip()})" if lines else ""


def _stop(mount: _Mount) -> None:
    """Stops the program, which sends the remaining data and unmounts; kills it after a timeout."""
    mount.process.send_signal(signal.SIGINT)
    try:
        mount.process.wait(_UNMOUNT_S)
    except subprocess.TimeoutExpired:
        mount.process.kill()
    _remove(mount.folder)


def _remove(folder: Path) -> None:
    """Removes the folder; unmounts it first if a crashed program left it mounted (s3fs may crash while it exits)."""
    if str(folder) in _mounted_folders():
        subprocess.run(["fusermount", "-u", "-z", str(folder)], capture_output=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _mounted_folders() -> list[str]:
    """Returns the mount points that this process sees."""
    table = Path("/proc/mounts")
    return [line.split()[1] for line in table.read_text().splitlines()] if table.exists() else []
