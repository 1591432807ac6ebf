"""The small files of a run in a bucket."""

import pytest

from engine.base.errors import CheckpointError
from engine.checkpoint.bucket_copy import add_step, readable
from engine.storage.mounts import shown
from tests.bucket_store import upload

pytestmark = pytest.mark.multiprocess


def test_only_small_files_are_copied_and_each_call_reads_them_again(bucket, tmp_path):
    small = ["config.txt", "status.json", "checkpoints/results.json", "checkpoints/5/manifest.json"]
    small += ["checkpoints/5/state/_METADATA"]
    for name in [*small, "metrics.jsonl", "checkpoints/5/state/d/0a", "checkpoints/5.d1.deleted/manifest.json"]:
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    upload(bucket, tmp_path / "run", "a/run")
    upload(bucket, tmp_path / "run", "a/run2")
    for address in ("s3://data/a/run", "s3://data/a/run/", "s3:/data/a/run"):
        folder = readable(address)
        assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == sorted(small)
        assert shown(folder) == "s3://data/a/run"
    bucket.write("a/run/status.json", b"new").result()
    assert (readable("s3://data/a/run") / "status.json").read_text() == "new"
    step = readable("s3://data/a/run/checkpoints/5")
    assert shown(step) == "s3://data/a/run/checkpoints/5" and (step / "state/_METADATA").is_file()
    assert readable(tmp_path) == tmp_path


def test_step_that_was_saved_later_is_added_to_a_copy(bucket, tmp_path):
    bucket.write("run/config.txt", b"config").result()
    folder = readable("s3://data/run")
    step = folder / "checkpoints" / "5"
    for name in ("manifest.json", "state/_METADATA", "state/d/0a"):
        bucket.write(f"run/checkpoints/5/{name}", name.encode()).result()
    add_step(step)
    assert (step / "manifest.json").read_text() == "manifest.json" and (step / "state/_METADATA").is_file()
    assert not (step / "state/d").exists()
    bucket.write("run/checkpoints/5/manifest.json", b"changed").result()
    add_step(step)
    assert (step / "manifest.json").read_text() == "manifest.json"
    add_step(tmp_path / "5")
    assert not (tmp_path / "5").exists()


def test_bucket_that_cannot_be_read_is_an_error(bucket):
    with pytest.raises(CheckpointError, match=r"s3://none/run: cannot be read \(NOT_FOUND: NoSuchBucket"):
        readable("s3://none/run")
