"""Sources of TensorFlow Datasets: opened by name, with random access to tfrecord and array_record files."""

import contextlib
import functools
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from flax_resnet.data.data_section import NOT_TFDS, Data, SourceRow, split_setting
from flax_resnet.data.fingerprint import Fingerprint, texts_checksum
from flax_resnet.data.preparation import not_prepared, preparation, prepare
from flax_resnet.data.record_files import FORMATS, ShardedRecords
from flax_resnet.data.record_texts import texts_of
from flax_resnet.data.records import Records
from flax_resnet.data.stored_labels import stored_labels
from flax_resnet.errors import DataError, OutputError, UserError, one_line, suggestion

EMBEDDED = ("digits",)  # builders inside the package, prepared on first use without a network


class _Split(Protocol):
    """The examples of a split: records, or dicts of features."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int] | np.ndarray) -> Sequence[Any]: ...

    def shared(self, other: Any) -> int: ...


class TfdsSource:
    """A split of a TFDS dataset, such as ``train``, ``train[:90%]`` or ``train+validation``.

    Args:
      config: the data section: name, data_dir, and the features for image and label.
      split: TFDS split expression.

    Raises:
      DataError: the dataset is unknown or not prepared, or it has no such split, no image or no label; one line.
    """

    orientations = False  # images are read as the dataset stores them

    def __init__(self, config: Data, split: str):
        self._name, self._split = config.name, split
        builder = find_builder(config.name, config.data_dir)
        features = builder.info.features
        self._image = find_feature(features, "image", config.image_feature, config.name)
        self._label = find_feature(features, "label", config.label_feature, config.name)
        self._has_names = "file_name" in features
        self._records: _Split
        self._parse: Callable[[Any], tuple[bytes, int]]
        self._folder, self._full_name = pathlib.Path(builder.data_path), builder.info.full_name
        if builder.data_path.exists():
            self._records, self._parse = _open_split(builder, config, split), self._parsed
        else:  # raises DataError, unless tfds.testing.mock_data replaces the files
            self._records, self._parse = _MockedSplit(builder, config, split), self._chosen
        if not len(self._records):
            raise DataError(
                f"is empty in dataset {config.name!r}",
                key=split_setting(config, split),
                value=split,
            )
        label = _lookup(features, self._label)
        self.class_names = ("False", "True") if label.np_dtype == np.bool_ else tuple(label.names)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Sequence[int] | np.ndarray) -> Records:
        """Read the examples at these indices, in this order. Raise DataError for a corrupted file."""
        images, labels = zip(*map(self._parse, self._records.read(indices)), strict=True)
        return Records(list(images), np.array(labels, np.int32))

    def labels(self) -> np.ndarray:
        """Return the label of every example, int32 [n]. Reads all records once, and then `stored_labels`."""
        return self._labels

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        if not isinstance(self._records, ShardedRecords):
            return self.read(range(len(self))).labels
        return stored_labels(
            self._records, self._label_of, folder=self._folder, feature=self._label
        )

    def shared(self, other: "TfdsSource") -> int:
        """Return the number of examples that are also in another split of the dataset."""
        return self._records.shared(other._records)

    def file_names(self) -> list[str]:
        """Return the name of each example's file, as `texts_of` does; empty if the dataset does not state them."""
        if not (self._has_names and isinstance(self._records, ShardedRecords)):
            return []
        return texts_of(self._records, "file_name")

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of the files' names and lengths, the same for all formats, and of their sizes."""
        if not isinstance(self._records, ShardedRecords):
            return {}
        return {"names": texts_checksum([self._full_name]), **self._records.fingerprint()}

    def describe(self, index: int) -> str:
        """Return a readable name of an example."""
        return f"example {index} of {self._name} {self._split}"

    def _parsed(self, record: bytes, *, with_image: bool = True) -> tuple[bytes, int]:
        import tensorflow as tf
        from google.protobuf.message import DecodeError

        try:
            feature = tf.train.Example.FromString(record).features.feature  # 6 us for 61 KB
            label = feature[self._label].int64_list.value[0]
            return feature[self._image].bytes_list.value[0] if with_image else b"", label
        except (DecodeError, IndexError) as error:
            raise DataError(
                f"a record of split {self._split!r} is damaged: {one_line(error)}",
                key="data.name",
                value=self._name,
            ) from error

    def _label_of(self, record: bytes) -> int:
        return self._parsed(record, with_image=False)[1]

    def _chosen(self, example: dict[str, Any]) -> tuple[bytes, int]:
        return example[self._image], example[self._label]


def _is_image(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.Image) and feature.np_dtype != np.float32


def _is_label(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return feature.num_classes is not None
    return type(feature) in (tfds.features.Tensor, tfds.features.Scalar) and (
        feature.shape == () and feature.np_dtype == np.bool_
    )


def find_feature(features: Any, role: str, wanted: str, name: str) -> str:
    """Return the key of the image or label: the requested key, else the key named `role`, else the only one.

    Args:
      features: features of a TFDS dataset.
      role: "image" or "label".
      wanted: the requested key; or empty.
      name: name of the dataset, for errors.

    Raises:
      DataError: there is no such feature, or there are several and none is requested.
    """
    fits, kind = {"image": (_is_image, "images"), "label": (_is_label, "class labels")}[role]
    candidates = [key for key, feature in _flat(features) if fits(feature)]
    if not candidates:
        everything = ", ".join(key for key, _ in _flat(features))
        raise DataError(f"has no {kind} (features: {everything})", key="data.name", value=name)
    if wanted in candidates:
        return wanted
    if not wanted and (role in candidates or len(candidates) == 1):
        return role if role in candidates else candidates[0]
    raise DataError(
        f"is no {role} of dataset {name!r}" if wanted else f"dataset {name!r} has several {kind}",
        key=f"data.{role}_feature",
        value=wanted,
        allowed=candidates,
    )


def _flat(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, feature) for every feature; keys are those in the records: "image", "attributes/Male"."""
    import tensorflow_datasets as tfds

    for key, feature in features.items():
        if type(feature) is tfds.features.FeaturesDict:
            yield from _flat(feature, f"{prefix}{key}/")
        else:
            yield prefix + key, feature


def _lookup(features: Any, key: str) -> Any:
    return dict(_flat(features))[key]


def _open_split(builder: Any, config: Data, split: str) -> ShardedRecords:
    from tensorflow_datasets.core.file_adapters import FileFormat

    name = config.name
    available = {f.value: f for f in builder.info.available_file_formats() if f}
    kind = next((kind for kind in FORMATS if kind in available), None)
    if kind is None:
        raise DataError(
            f"is stored in {builder.data_path} as {', '.join(sorted(available)) or 'an unknown format'}",
            key="data.name",
            value=name,
            allowed=f"stored as {' or '.join(FORMATS)} for random access",
            cure=f"prepare it again: {preparation(name, config.data_dir)}",
        )
    if builder.info.file_format != available[kind]:
        builder.info.set_file_format(FileFormat(kind), override=True, override_if_initialized=True)
    try:
        parts = builder.info.splits[split].file_instructions
    except (ValueError, KeyError, AssertionError) as error:
        raise DataError(
            f"dataset {name!r}: {one_line(error).rstrip('.')}",
            key=split_setting(config, split),
            value=split,
            allowed=f"one of the splits: {', '.join(builder.info.splits)}; or a slice such as "
            "'train[:90%]'",
        ) from error
    return ShardedRecords(
        kind, [(str(p.filename), p.skip, p.take, p.examples_in_shard) for p in parts]
    )


class _MockedSplit:
    """A split read by `as_data_source`, which raises if the dataset is neither prepared nor mocked."""

    def __init__(self, builder: Any, config: Data, split: str):
        import tensorflow_datasets as tfds

        try:
            self._examples = builder.as_data_source(
                split=split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except (AssertionError, KeyError) as error:  # no folder, no splits
            raise not_prepared(builder, config.name, config.data_dir) from error

    def __len__(self) -> int:
        return len(self._examples)

    def shared(self, other: "_MockedSplit") -> int:
        return 0  # the examples of each split are random

    def read(self, indices: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        return [self._examples[int(i)] for i in indices]


def evaluation_split(config: Data) -> str:
    """Return the split of a dataset to evaluate on: validation, or test if there is only test.

    Errors are those of `find_builder`.
    """
    splits = find_builder(config.name, config.data_dir).info.splits
    return "test" if "test" in splits and "validation" not in splits else "validation"


def find_builder(name: str, data_dir: str) -> Any:
    """Return the TFDS builder of a dataset; prepare an embedded dataset at its first use.

    Args:
      name: TFDS name, name/config or name:version.
      data_dir: TFDS data folder; empty for TFDS's default.

    Raises:
      DataError: the dataset does not exist, or its code cannot be imported or used.
      OutputError: its folder cannot be written.
    """
    import tensorflow_datasets as tfds

    where = str(pathlib.Path(data_dir).expanduser().resolve()) if data_dir else None
    as_array_record = {"data_dir": where, "file_format": "array_record"}
    try:
        if name in EMBEDDED:
            from flax_resnet.data.digits.digits_dataset_builder import Builder

            builder = Builder(data_dir=where)
            if builder.data_path.exists():
                return _with_alternatives(builder)
            tfds.disable_progress_bar()
            with contextlib.redirect_stdout(io.StringIO()):
                prepare(Builder(**as_array_record))
            return _with_alternatives(Builder(data_dir=where))
        builder = tfds.builder(name, data_dir=where)
        if builder.data_path.exists():
            return _with_alternatives(builder)
        return tfds.builder(name, **as_array_record)
    except UserError:
        raise
    except tfds.core.DatasetNotFoundError as error:
        known = [*EMBEDDED, *tfds.list_builders(with_community_datasets=False)]
        hint = suggestion(name, known)
        hint = hint if hint.startswith("did") else "see https://www.tensorflow.org/datasets/catalog"
        raise DataError(NOT_TFDS, key="data.name", value=name, cure=hint) from error
    except OSError as error:
        raise OutputError(
            f"dataset {name!r} cannot be written: {one_line(error)}",
            key=where or tfds.core.constants.DATA_DIR,
        ) from error
    except (ValueError, AssertionError, ImportError) as error:
        if "Parsing builder name" in str(error):
            what = "name, name/config or name:version of a TFDS dataset"
            raise DataError(key="data.name", value=name, allowed=what) from error
        raise DataError(one_line(error), key="data.name", value=name) from error


def _with_alternatives(builder: Any) -> Any:
    """Return a builder that knows all formats of its files.

    A builder from a dataset's code ignores the alternative formats in dataset_info.json (TFDS 4.9.10); a builder
    from the folder uses them.
    """
    import tensorflow_datasets as tfds

    if builder.info.as_proto.alternative_file_formats:
        return tfds.builder_from_directory(builder.data_path)
    return builder


def _is_name(text: str) -> bool:
    """Return whether a text may be a name, name/config or name:version, not the path of something missing."""
    first, slash, _ = text.partition("/")
    is_path = text[:1] in "./~" or text.count("/") > 1 or text.endswith(("/", ".csv"))
    return not is_path and not (slash and os.path.exists(first))


ROWS = (
    SourceRow(
        name="tfds",
        help="a dataset of TensorFlow Datasets",
        uses={"name": "digits", "data_dir": "", "image_feature": "", "label_feature": ""},
        open=lambda config, split, train: TfdsSource(config, split),
        location="name",
        has_kind=_is_name,
        eval_split=evaluation_split,
    ),
)
