"""The metadata of a checkpoint: all that is needed to use its arrays, with a schema number and a checksum."""

import dataclasses
import importlib.metadata
import json
import zlib
from collections.abc import Mapping
from typing import Any, Self

from flax_resnet.config import Config, freeze
from flax_resnet.errors import CheckpointError, WorkdirError
from flax_resnet.version import __version__

# Schema number of run folders. Increase it when a setting or a field is renamed; reading an older folder raises.
SCHEMA = 2
# {older schema: last version that reads it}
READERS = {1: "0.1.0"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


@dataclasses.dataclass(frozen=True)
class RunMetadata:
    """The metadata of a checkpoint.

    Attributes:
      config: the configuration, one dict per section.
      class_names: names of the classes, in the order of the logits.
      num_classes: number of logits; may be larger than the number of class names.
      num_examples: number of images of the training split.
      microbatches: number of microbatches per batch.
      teacher_checksum: CRC-32 of the teacher (`Teacher.checksum`); None without a teacher.
      bad_images: {index of an unreadable image, as text: step at which it was found}.
      metrics: metrics of the evaluation at this step, or None.
      shapes: {path: shape} of all arrays; a path is such as ``params/conv1/kernel``.
      checksums: {path: CRC-32 of the array's bytes}.
      versions: {package: version} at the time of writing.
      schema: schema number of the run folder.
    """

    config: dict[str, dict[str, Any]]
    class_names: tuple[str, ...]
    num_classes: int
    num_examples: int = 0
    microbatches: int = 1
    teacher_checksum: int | None = None
    bad_images: dict[str, int] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] | None = None
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
    def from_json(cls, values: Any) -> Self:
        """Read the JSON object of `to_json`.

        Raises:
          WorkdirError: another version of flax_resnet wrote it.
          CheckpointError: the metadata are corrupted.
        """
        if not isinstance(values, Mapping):
            raise CheckpointError("its description is not a JSON object")
        fields = {key: value for key, value in values.items() if key != "checksum"}
        if "checksum" in values and values["checksum"] != _checksum(fields):
            raise CheckpointError("its description is not what was saved")
        check_schema(values, "the checkpoint")  # schema 1 has no checksum
        if "checksum" not in values:
            raise CheckpointError("its description has no checksum")
        names = {field.name for field in dataclasses.fields(cls)}
        if mismatch := names ^ fields.keys():
            raise CheckpointError(f"its description does not fit: {', '.join(sorted(mismatch))}")
        return cls(**{**fields, "class_names": tuple(fields["class_names"])})


def check_schema(values: Mapping[str, Any], what: str) -> None:
    """Raise WorkdirError if another version of flax_resnet wrote a run folder.

    Args:
      values: the JSON object; a missing `schema` counts as 1.
      what: the file or folder, for the message.
    """
    schema = values.get("schema", 1)
    if type(schema) is not int:
        raise WorkdirError(f"{what} has schema {schema!r}: must be a whole number")
    if schema == SCHEMA:
        return
    if schema in READERS:
        reader = f"flax_resnet=={READERS[schema]} reads it"
    else:
        reader = f"a flax_resnet newer than {__version__} reads it"
    raise WorkdirError(f"{what} has schema {schema}, this version reads {SCHEMA}: {reader}")


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
