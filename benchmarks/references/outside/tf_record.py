"""Writes the sets of FOLDER/inputs.json as TFRecord files and reads them, by TensorFlow. Imports no engine.

A set has the context of a SequenceExample, and the steps of its sequences. results.json has the values that TensorFlow
reads from each file, by compression. Bytes are text in latin-1.
"""

import json
import sys
from pathlib import Path

import tensorflow as tf

CONTEXT = {
    "id": tf.io.FixedLenFeature([], tf.int64),
    "name": tf.io.FixedLenFeature([], tf.string),
    "pose": tf.io.FixedLenFeature([3], tf.float32),
}
SEQUENCES = {
    "speed": tf.io.FixedLenSequenceFeature([], tf.float32),
    "box": tf.io.FixedLenSequenceFeature([4], tf.int64),
    "ids": tf.io.RaggedFeature(tf.int64),
    "tag": tf.io.FixedLenSequenceFeature([], tf.string),
}


def feature(value):
    """Returns the values of a feature, or of a step of a sequence."""
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], str):
        data = [text.encode("latin-1") for text in values]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=data))
    if isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def record(case):
    """Returns a set as the bytes of a SequenceExample."""
    context = {name: feature(value) for name, value in case["context"].items()}
    lists = {
        name: tf.train.FeatureList(feature=[feature(step) for step in steps])
        for name, steps in case["sequences"].items()
    }
    return tf.train.SequenceExample(
        context=tf.train.Features(feature=context), feature_lists=tf.train.FeatureLists(feature_list=lists)
    ).SerializeToString()


def plain(value):
    """Returns a tensor as lists, with bytes as text."""
    value = value.to_list() if isinstance(value, tf.RaggedTensor) else value.numpy()
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):
        return [part.decode("latin-1") if isinstance(part, bytes) else part for part in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def main(folder):
    """Writes the files and reads them again."""
    sets, results = json.loads((folder / "inputs.json").read_text())["sets"], {}
    for kind in ("", "GZIP", "ZLIB"):
        path = str(folder / f"{kind or 'plain'}.tfrecord")
        with tf.io.TFRecordWriter(path, kind) as writer:
            for case in sets:
                writer.write(record(case))
        results[kind] = []
        for data in tf.data.TFRecordDataset(path, kind):
            context, sequences = tf.io.parse_single_sequence_example(data, CONTEXT, SEQUENCES)
            results[kind].append({name: plain(value) for name, value in (context | sequences).items()})
    (folder / "results.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
