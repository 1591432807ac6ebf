"""Paths and addresses; real buckets are mounted in tests/launch/bucket_test.py."""

from pathlib import Path

import pytest

from engine.base.errors import RunError
from engine.storage.mounts import is_address, local_path, local_text, mount_command, shown


@pytest.mark.parametrize("path", ["runs/a", "/data/x*.arrayrecord", "a:b/c", "C:/runs", "~/runs", "", "1://x"])
def test_local_path_is_unchanged(path):
    assert local_path(path) == Path(path)
    assert shown(path) == local_text(path) == path
    assert not is_address(path)


@pytest.mark.parametrize("path", ["s3://b", "gs://b/c", Path("s3://b/c"), "az://b/c"])
def test_address_is_recognized_as_text_and_as_path(path):
    assert is_address(path)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("az://b/c", r"az://b/c: this address cannot be mounted. Allowed: s3://BUCKET/PATH and gs://BUCKET/PATH"),
        ("s3a://b/c", r"and local paths. Did you mean s3\?"),
        ("s3:///c", r"s3:///c: this address cannot be mounted"),
    ],
)
def test_unsupported_address_raises(path, found):
    with pytest.raises(RunError, match=found):
        local_path(path)


@pytest.mark.parametrize(("scheme", "program"), [("s3", "s3fs"), ("gs", "gcsfuse")])
def test_missing_mount_program_error_names_the_program(scheme, program, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match=f"{scheme}://b: {program}, which mounts such buckets, is not installed. "):
        local_path(f"{scheme}://b/run")


def test_mount_caches_attributes_for_at_most_a_second(monkeypatch, tmp_path):
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = Path("/mnt")
    fresh = "disable_noobj_cache,stat_cache_expire=1"
    assert mount_command("s3", "b", folder) == ["s3fs", "b", "/mnt", "-f", "-o", f"{fresh},iam_role=auto"]
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").touch()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://here")
    here = f"{fresh},url=http://here,use_path_request_style"
    assert mount_command("s3", "b", folder) == ["s3fs", "b", "/mnt", "-f", "-o", here]
    assert mount_command("gs", "b", folder) == [
        "gcsfuse", "--foreground", "--implicit-dirs", "--metadata-cache-ttl-secs=1",
        "--metadata-cache-negative-ttl-secs=0", "b", "/mnt",
    ]  # fmt: skip
