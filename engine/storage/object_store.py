"""Reads and writes objects of buckets with TensorStore, without a mount.

The variable CONVOY_DATA_CACHE selects this way for data (`engine/readers/bucket_cache.py`), for the checkpoints of runs
that are only read (`engine/checkpoint/bucket_copy.py`) and for `convoy data write`. A run that trains needs a mount:
its lease needs file locks, and its checkpoints are renamed.
"""

import os
import re
from collections.abc import Callable
from typing import Any

from engine.base.errors import ConvoyError
from engine.storage.mounts import split_address

SWITCH = "CONVOY_DATA_CACHE"
STALL = {"TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "30", "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1"}
"""Variables that TensorStore reads: a request without a byte for so long has failed. By default it waits for ever."""
RETRY = 42  # as in engine/cluster/exit_status.py, which is on a higher level
REGION = "us-east-1"  # region for a server other than Amazon's, if no variable names one
RETRIES = {"max_retries": 6, "initial_delay": "1s", "max_delay": "32s"}  # at most 63 s in total
_KEYS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use ~/.aws/credentials or a role that may access it.",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`.",
}
_PASSING = r"retry attempts failed|CURL|UNAVAILABLE"  # in the text of an error of the network or the server
_ADVICE = (
    (r"NoSuchBucket", "Check that the bucket exists, its name, and AWS_ENDPOINT_URL."),
    (r"NOT_FOUND|FAILED_PRECONDITION", "An object was removed, or never written. Check the address."),
    (r"AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocation|code='301'", "Set AWS_REGION to its region."),
    (
        r"(?i)credential|AccessDenied|InvalidAccessKey|SignatureDoesNotMatch|PERMISSION|UNAUTHENTICATED|code='40[13]'",
        "",
    ),
    (
        _PASSING,
        "Check AWS_ENDPOINT_URL and the network, then start the same command again.",
    ),
)
"""Pattern in the text of an error -> what to do; empty: what `_KEYS` says."""


def is_selected(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is an address whose objects are read without a mount."""
    return bool(os.environ.get(SWITCH)) and split_address(path) is not None


class Bucket:
    """The objects of a bucket. An object is named by its key, such as `runs/a/config.txt`.

    TensorStore repeats a request that fails for a moment (`RETRIES`). The methods raise `error` if that does not help.

    Args:
        scheme: "s3" or "gs".
        bucket: its name.
        error: class of the errors, whose text names the address, what failed and what to do.
    """

    def __init__(self, scheme: str, bucket: str, error: type[ConvoyError]):
        import tensorstore

        self.scheme, self.bucket, self.name = scheme, bucket, f"{scheme}://{bucket}"
        self._error = error
        self._store: Any = self.call(lambda: tensorstore.KvStore.open(spec(scheme, bucket), context=context()).result())

    def list(self, prefix: str) -> list[str]:
        """Returns the keys that begin with a prefix."""
        import tensorstore

        keys = tensorstore.KvStore.KeyRange(prefix, prefix + "\U0010ffff")
        return [
            key.decode(errors="surrogateescape") for key in self.call(lambda: self._store.list(keys).result(), prefix)
        ]

    def read(self, key: str) -> tuple[bytes | None, str]:
        """Returns the content of an object, None if it does not exist, and the identity of the content."""
        found = self.call(lambda: self._store.read(key).result(), key)
        return found.value if found.state == "value" else None, found.stamp.generation.hex()

    def generation(self, key: str) -> str:
        """Returns the identity of the present content of an object."""
        found = self.call(lambda: self._store.read(key, byte_range=slice(0, 0)).result(), key)
        return found.stamp.generation.hex()

    def write(self, key: str, content: bytes) -> str:
        """Writes an object in one request, which replaces it; returns its generation."""
        return self.call(lambda: self._store.write(key, content).result(), key, "written").generation.hex()

    def delete(self, key: str) -> None:
        """Deletes an object, if it exists."""
        self.call(lambda: self._store.write(key, None).result(), key, "deleted")

    def call[T](self, function: Callable[[], T], key: str = "", done: str = "read") -> T:
        """Returns the result of a function, whose errors of TensorStore are raised as `error`."""
        try:
            return function()
        except ValueError as error:  # TensorStore raises it for every failure
            raise failure(self._error, f"{self.name}/{key}".rstrip("/"), error, done) from error


def spec(scheme: str, bucket: str, path: str = "") -> dict[str, Any]:
    """Returns TensorStore's spec of the objects below a path.

    For `s3`, `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL` select a server other than Amazon's.
    """
    found: dict[str, Any] = {"driver": "gcs" if scheme == "gs" else "s3", "bucket": bucket}
    if path:
        found["path"] = path
    if scheme == "gs":
        return found
    if url := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or REGION
        found |= {"endpoint": url, "aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else from the AWS files or the machine's role
        found["aws_credentials"] = {"type": "environment"}
    return found


def context(**resources: Any) -> Any:
    """Returns TensorStore's context with the limits of retries and further resources."""
    for name, value in STALL.items():
        os.environ.setdefault(name, value)
    import tensorstore

    return tensorstore.Context({"s3_request_retries": RETRIES, "gcs_request_retries": RETRIES, **resources})


def failure(kind: type[ConvoyError], address: str, error: Exception, done: str = "read") -> ConvoyError:
    """Returns the error of a request that failed; starting again may help where the network or the server failed."""
    found = kind(explain(address, error, done))
    if re.search(_PASSING, str(error)):
        found.exit_code = RETRY
    return found


def explain(address: str, error: Exception, done: str = "read") -> str:
    """Returns a sentence about an error of TensorStore: the address, what failed and what to do."""
    text = str(error).partition(" [tensorstore_spec")[0]
    advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, text)), None)
    scheme = address.partition(":")[0]
    if advice is None:
        advice = f"Check that the bucket exists and that its keys are set. {_KEYS[scheme]}"
    return f"{address}: cannot be {done} ({text.partition(' [')[0][:300]}). {advice or _KEYS[scheme]}"
