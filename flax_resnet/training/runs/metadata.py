"""The metadata of a checkpoint: all that a reader needs to use its arrays, a schema number, and a checksum."""

import dataclasses
import importlib.metadata
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any, Self

from flax_resnet.config import Config, freeze
from flax_resnet.errors import BrokenCheckpointError, CheckpointError, WorkdirError
from flax_resnet.version import __version__

# Schema number of run folders. Increase it when a setting or a field is renamed; reading an older folder raises.
SCHEMA = 6
# {older schema: last version that reads it}
READERS = {1: "0.1.0", 2: "0.2.0", 3: "0.3.0", 4: "0.4.0", 5: "0.5.0"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


@dataclasses.dataclass(frozen=True)
class RunMetadata:
    """The metadata of a checkpoint.

    Attributes:
      config: the configuration, one dict per section.
      class_names: names of the classes, in the order of the logits.
      num_classes: number of logits; may be larger than the number of class names.
      num_examples: number of images of the training split.
      fingerprint: the fingerprint of these images (data/fingerprint.py).
      microbatches: number of microbatches per batch.
      teacher_checksum: CRC-32 of the teacher (`Teacher.checksum`); None without a teacher.
      bad_images: {index of an unreadable image, as text: step at which it was found}.
      unrecorded: `StepMetrics.unrecorded`, of the steps since the last training record.
      ema_measured: whether the moving average's batch statistics are as `ema.bn_batches` asks. A signal saves the
        state before they are measured.
      shapes: {path: shape} of all arrays; a path looks like ``params/conv1/kernel``.
      checksums: {path: CRC-32 of the array's bytes}.
      versions: {package: version} at the time of writing.
      schema: schema number of the run folder.
    """

    config: dict[str, dict[str, Any]]
    class_names: tuple[str, ...]
    num_classes: int
    num_examples: int = 0
    fingerprint: dict[str, int] = dataclasses.field(default_factory=dict)
    microbatches: int = 1
    teacher_checksum: int | None = None
    bad_images: dict[str, int] = dataclasses.field(default_factory=dict)
    unrecorded: dict[str, Any] = dataclasses.field(default_factory=dict)
    ema_measured: bool = True
    shapes: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    checksums: dict[str, int] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def frozen_config(self) -> Config:
        """The checked configuration. Raises ConfigError if it is invalid in this version."""
        return freeze(self.config)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object to store, including its checksum."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {**values, "checksum": _checksum(values)}

    @classmethod
    def from_json(cls, values: Any, path: str | os.PathLike = "the metadata") -> Self:
        """Read the JSON object of `to_json`.

        Args:
          values: the JSON object.
          path: the place it was read from, for error messages.

        Raises:
          WorkdirError: another version of flax_resnet wrote it.
          BrokenCheckpointError: the metadata are corrupted.
          CheckpointError: another revision of this version wrote other fields.
        """
        if not isinstance(values, Mapping):
            raise BrokenCheckpointError("is not a JSON object", key=path)
        fields = {key: value for key, value in values.items() if key != "checksum"}
        if "checksum" in values and values["checksum"] != _checksum(fields):
            raise BrokenCheckpointError("is not what was saved: its checksum differs", key=path)
        check_schema(values, path)  # schema 1 has no checksum
        if "checksum" not in values:
            raise BrokenCheckpointError("has no checksum", key=path)
        names = {field.name for field in dataclasses.fields(cls)}
        if mismatch := names ^ fields.keys():
            odd = ", ".join(sorted(mismatch))
            raise CheckpointError(f"has missing or unknown fields: {odd}", key=path)
        return cls(**{**fields, "class_names": tuple(fields["class_names"])})


def check_schema(values: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Raise WorkdirError if another version of flax_resnet wrote a run folder.

    Args:
      values: the JSON object; a missing `schema` counts as 1.
      path: the place it was read from, for error messages.
    """
    schema = values.get("schema", 1)
    if type(schema) is not int:
        raise WorkdirError(f"has schema {schema!r}", key=path, allowed="a whole number")
    if schema == SCHEMA:
        return
    version = f"=={READERS[schema]}" if schema in READERS else f" newer than {__version__}"
    raise WorkdirError(
        f"has schema {schema}, this version reads {SCHEMA}",
        key=path,
        cure=f"read it with flax_resnet{version}",
    )


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that checkpoints depend on."""
    installed = {"flax_resnet": __version__}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def _checksum(values: Mapping[str, Any]) -> int:
    """Return the CRC-32 of a JSON object, independent of the order of its keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return zlib.crc32(text.encode())
