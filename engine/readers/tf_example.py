"""Decodes `tf.train.Example` and `tf.train.SequenceExample` messages, without TensorFlow.

An Example maps the name of each feature to a list of bytes, of floats (float32) or of integers (int64). A
SequenceExample has such features as its context, and maps the name of each sequence to its steps, which are features.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from engine.base.errors import DataError
from engine.data.examples import Example
from engine.readers.tf_features import FeatureSpec, feature_entry, number_entry, parse_feature
from engine.readers.tf_sequences import sequence_entry
from engine.readers.tf_values import Values, raw_features, values_of


class TFExample:
    """Decoder of `tf.train.Example` and `tf.train.SequenceExample` messages into dicts of arrays.

    Args:
        features: for each feature to read, its dtype (a single value), or `(dtype, shape)`, or `(dtype, shape,
            default)` with the value of a feature that a record lacks. The first dimension of a shape may be None, for a
            ragged feature; if a record lacks it, it has no elements. Dtypes are the numbers of NumPy, "bytes", "str"
            (UTF-8) and "image". A feature of bytes with a numeric dtype is the raw little-endian values of an array.
            "image" is an encoded image, and `("image", [height, width])` resizes it (`DecodeImage`). None reads all
            features of a sample of the records: a feature with one value in each of them is a single value, any other
            is an array `[values]`. Instead of a dtype, there may be a function of the bytes of a single value, such as
            `DecodeImage(dtype="uint16")`. Of a SequenceExample, these are the features of the context.
        sequences: for each sequence of a SequenceExample to read, the same description of one step. The entry is an
            array `[steps, ...]`, or a list of arrays if steps differ in length. A sequence that a record lacks has no
            steps. None reads all if `features` is None, and else none.

    ```python
    TFExample({"label": "int32", "image": ("uint8", [28, 28]), "points": ("float32", [None, 3])})
    TFExample({"id": "str"}, sequences={"speed": "float32", "camera": "image"})
    ```

    Raises:
        DataError: the description of a feature is invalid, or a feature and a sequence have one name.
    """

    def __init__(
        self,
        features: Mapping[str, FeatureSpec] | None = None,
        sequences: Mapping[str, FeatureSpec] | None = None,
    ):
        self.features = (
            None if features is None else {name: parse_feature(name, spec) for name, spec in features.items()}
        )
        if sequences is None and features is not None:
            sequences = {}
        self.sequences = (
            None if sequences is None else {name: parse_feature(name, spec) for name, spec in sequences.items()}
        )
        if self.features == {} and not self.sequences:
            raise DataError("features is empty. Name at least one feature, or omit it to read all.")
        _check_names(self.features or {}, self.sequences or {})

    def __repr__(self) -> str:
        texts = [
            found and f"{{{', '.join(f'{name!r}: {feature}' for name, feature in sorted(found.items()))}}}"
            for found in (self.features, self.sequences)
        ]
        # Without sequences, it is the text of versions that knew none.
        return f"TFExample({texts[0]}, sequences={texts[1]})" if self.sequences else f"TFExample({texts[0]})"

    def inferred(self, records: Iterable[bytes]) -> "TFExample":
        """Returns the decoder of all features and sequences that some records have; those that were given stay.

        Raises:
            DataError: a record is damaged, or a feature has different kinds of values in two records.
        """
        if self.features is not None:
            return self
        features, sequences, total = _Inferred("feature"), _Inferred("sequence"), 0
        for total, record in enumerate(records, start=1):  # noqa: B007, used after the loop
            context, lists = raw_features(record)
            for name in context:
                if (values := values_of(context[name])) is not None:
                    features.add(name, values)
            for name, steps in lists.items():
                sequences.counts.setdefault(name, [])  # also of a sequence without steps
                for step in steps:
                    sequences.add(name, values_of(step))
        found = features.specs({name for name, counts in features.counts.items() if len(counts) == total})
        if self.sequences is not None:
            return TFExample(
                found, {name: f.decode or (f.dtype, f.shape, f.default) for name, f in self.sequences.items()}
            )
        if not found and not sequences.counts:
            raise DataError("the records hold no features: they are no tf.train.Example. Name a decoder.")
        return TFExample(found, sequences.specs({*sequences.counts}))

    def __call__(self, record: bytes) -> Example:
        """Returns the features and the sequences of a record.

        Raises:
            DataError: the record is damaged, a feature is missing, or its values do not fit its dtype or shape.
        """
        if self.features is None or self.sequences is None:
            return self.inferred([record])(record)
        context, lists = raw_features(record)
        found = {}
        for name, feature in self.features.items():
            stored = context.get(name)
            entry = None if stored is None else number_entry(feature, stored)
            if entry is None:
                entry = feature_entry(name, feature, None if stored is None else values_of(stored), context)
            found[name] = entry
        for name, feature in self.sequences.items():
            found[name] = sequence_entry(name, feature, [values_of(step) for step in lists.get(name, ())])
        return found


class _Inferred:
    """The kinds of values and their numbers that features, or the steps of sequences, have in some records."""

    def __init__(self, what: str):
        self._what, self._kinds, self.counts = what, dict[str, str](), dict[str, list[int]]()

    def add(self, name: str, values: Values | None) -> None:
        """Adds the values of a record or of a step; None for a step without values."""
        self.counts.setdefault(name, []).append(0 if values is None else len(values[1]))
        if values is not None and self._kinds.setdefault(name, values[0]) != values[0]:
            raise DataError(
                f"{self._what} {name!r} is {self._kinds[name]} in one record and {values[0]} in another. Correct the "
                "files, or name the features to read: TFExample(features={...})."
            )

    def specs(self, everywhere: set[str]) -> dict[str, FeatureSpec]:
        """Returns the description of each name: one of `everywhere` that always has one value is a single value."""
        found: dict[str, FeatureSpec] = {}
        for name, counts in sorted(self.counts.items()):
            if name not in self._kinds:
                raise DataError(
                    f"{self._what} {name!r} has no values in the first records, which would tell its dtype. Name what "
                    "to read: TFExample(features={...}, sequences={...})."
                )
            single = name in everywhere and set(counts) == {1}
            found[name] = self._kinds[name] if single else (self._kinds[name], [None])
        return found


def _check_names(features: Mapping[str, Any], sequences: Mapping[str, Any]) -> None:
    if both := features.keys() & sequences.keys():
        raise DataError(
            f"{min(both)!r} is a feature of the context and a sequence. Name the one to read: TFExample(features="
            "{...}, sequences={...})."
        )
