"""Datasets that are written to a bucket without a mount."""

import numpy as np
import pytest

from engine.base.errors import DataError
from engine.cli.main import main
from engine.data.source import ArraySource
from engine.datasets import bucket_output
from engine.datasets.check import check_dataset
from engine.datasets.write import write_dataset
from engine.readers.array_record import ArrayRecordSource
from engine.storage import mounts
from engine.storage.object_store import Bucket

pytestmark = pytest.mark.multiprocess

OUT = "s3://data/a/scans.arrayrecord"


def source(n=10):
    return ArraySource({"x": np.arange(n)})


def keys(bucket):
    return sorted(key.decode() for key in bucket.list().result())


def test_dataset_is_complete_once_its_last_object_is_sent(bucket, tmp_path, monkeypatch):
    order, write = [], Bucket.write
    monkeypatch.setattr(Bucket, "write", lambda self, key, content: (order.append(key), write(self, key, content))[1])
    bucket.write("a/scans-others.arrayrecord", b"of another dataset").result()
    sent: list[tuple[int, int]] = []
    add = lambda done, total: sent.append((done, total))  # noqa: E731
    written = write_dataset(source(), OUT, shards=3, processes=1, on_sent=add)
    assert written.paths == [f"s3://data/a/scans-0000{n}-of-00003.arrayrecord" for n in range(3)]
    assert order[0] == order[-1] == "a/scans.arrayrecord.manifest.json" and len(order) == 7
    assert sent == [(done, 6) for done in range(1, 7)]  # three shards, the length index, the record, the manifest
    assert not (tmp_path / "cache" / "unsent" / "s3").exists()
    found = ArrayRecordSource(OUT)
    assert [int(found[index]["x"]) for index in range(10)] == list(range(10))
    report = check_dataset(found, processes=1)
    assert not report.faults
    with pytest.raises(DataError, match=r"s3://data/a/scans-00000-of-00003\.arrayrecord exists\. Choose another path"):
        write_dataset(source(), OUT, shards=3, processes=1)
    write_dataset(source(4), OUT, shards=2, processes=1, overwrite=True)
    assert len(ArrayRecordSource(OUT)) == 4 and len(keys(bucket)) == 6
    bucket.write("a/scans.arrayrecord.manifest.json", b"damaged").result()
    write_dataset(source(4), OUT, shards=1, processes=1, overwrite=True)
    assert len(ArrayRecordSource(OUT)) == 4 and len(keys(bucket)) == 5
    assert not mounts._mounts


def test_interrupted_write_continues_without_sending_again(bucket, tmp_path, monkeypatch):
    sent, write = [], Bucket.write

    def fail_at_fourth(self, key, content):
        if len(sent) == 3:
            raise DataError("the connection is lost")
        sent.append(key)
        return write(self, key, content)

    monkeypatch.setattr(bucket_output, "SENDS", 1)
    monkeypatch.setattr(Bucket, "write", fail_at_fourth)
    with pytest.raises(DataError, match="the connection is lost"):
        write_dataset(source(), OUT, shards=3, processes=1)
    assert keys(bucket) == sorted(sent)
    for pattern in (OUT, "s3://data/a/scans-*.arrayrecord"):
        with pytest.raises(DataError, match="0 of 3 shards are written"):
            ArrayRecordSource(pattern)
    monkeypatch.setattr(Bucket, "write", lambda self, key, content: (sent.append(key), write(self, key, content))[1])
    bucket.write(sent[1], b"changed by another program").result()
    again = write_dataset(source(), OUT, shards=3, processes=1)
    assert again.kept == 3
    assert sent[4:6] == [sent[1], "a/scans-00002-of-00003.arrayrecord"]
    assert [int(ArrayRecordSource(OUT)[index]["x"]) for index in range(10)] == list(range(10))
    with pytest.raises(DataError, match=r"s3://none/x: cannot be read \(NOT_FOUND: NoSuchBucket"):
        write_dataset(source(), "s3://none/x.arrayrecord", processes=1)


def test_equal_write_is_refused_during_the_sending_and_after_it(bucket, tmp_path, monkeypatch):
    refused, begun = [], []
    send, begin = bucket_output.BucketOutput.send, bucket_output.BucketOutput.__init__

    def send_while_another_begins(self, *arguments):
        with pytest.raises(DataError, match=r"another process writes this dataset\. Wait until it ends"):
            write_dataset(source(), OUT, shards=3, processes=1)
        refused.append(True)
        return send(self, *arguments)

    def begin_before_another_ends(self, *arguments):
        begin(self, *arguments)
        if not begun:
            begun.append(True)
            write_dataset(source(), OUT, shards=3, processes=1)

    monkeypatch.setattr(bucket_output.BucketOutput, "send", send_while_another_begins)
    monkeypatch.setattr(bucket_output.BucketOutput, "__init__", begin_before_another_ends)
    with pytest.raises(DataError, match=r"scans-00000-of-00003\.arrayrecord exists\. Choose another path"):
        write_dataset(source(), OUT, shards=3, processes=1)
    assert refused and not (tmp_path / "cache" / "unsent" / "s3").exists()


def test_command_prints_how_many_files_are_sent(bucket, capsys):
    data = ["--data.target=tests.datasets.bucket_output_test.source"]
    assert main(["data", "write", f"--out={OUT}", "--shards=2", "--processes=1", *data]) == 0
    lines = [line.split("  ")[0] for line in capsys.readouterr().err.splitlines()]
    assert [line for line in lines if line.startswith("sending")][-1] == "sending: 5/5 files"


def test_address_of_a_bucket_and_too_large_shards_are_refused(bucket, monkeypatch):
    with pytest.raises(DataError, match=r"s3://data: is a bucket\. Name a file in it"):
        write_dataset(source(), "s3://data/", processes=1)
    monkeypatch.setattr(bucket_output, "LARGEST", 10)
    with pytest.raises(DataError, match=r"scans-0000[01]-of-00002\.arrayrecord has .* with more --shards and"):
        write_dataset(source(), OUT, shards=2, processes=1)
    assert keys(bucket) == []
