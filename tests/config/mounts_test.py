"""What a place means on this machine; real buckets are mounted in tests/launch/bucket_test.py."""

from pathlib import Path

import pytest

from engine.config.errors import RunError
from engine.config.mounts import is_address, local_path, mount_command, shown


@pytest.mark.parametrize("place", ["runs/a", "/data/x*.arrayrecord", "a:b/c", "C:/runs", "~/runs", "", "1://x"])
def test_a_path_of_this_machine_means_itself(place):
    assert local_path(place) == Path(place)
    assert shown(place) == place
    assert not is_address(place)


@pytest.mark.parametrize("place", ["s3://b", "gs://b/c", Path("s3://b/c"), "az://b/c"])
def test_an_address_is_known_by_its_scheme_also_as_a_path(place):
    assert is_address(place)


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("az://b/c", r"az://b/c: no address that can be mounted; s3://BUCKET/PATH and gs://BUCKET/PATH are"),
        ("s3a://b/c", r"every folder of this machine. Did you mean s3\?"),
        ("s3:///c", r"s3:///c: no address that can be mounted"),
    ],
)
def test_another_address_is_refused(place, found):
    with pytest.raises(RunError, match=found):
        local_path(place)


@pytest.mark.parametrize(("scheme", "program"), [("s3", "s3fs"), ("gs", "gcsfuse")])
def test_without_the_program_that_mounts_it_a_sentence_says_what_to_install(scheme, program, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match=f"{scheme}://b: {program}, which mounts such buckets, is not installed here. "):
        local_path(f"{scheme}://b/run")


def test_the_words_that_mount_a_bucket_remember_little(monkeypatch, tmp_path):
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
