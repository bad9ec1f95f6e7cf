"""The description of a checkpoint: all that is needed to use its arrays, with a schema number and a checksum."""

import dataclasses
import importlib.metadata
import json
import zlib
from collections.abc import Mapping
from typing import Any, Self

from flax_resnet.config import Config, freeze
from flax_resnet.errors import CheckpointError, WorkdirError
from flax_resnet.version import __version__

# Of run folders. It changes where a setting or a field is renamed; an older folder is refused in one line.
SCHEMA = 2
# The last version that reads each older schema.
READERS = {1: "0.1.0"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")


@dataclasses.dataclass(frozen=True)
class RunMetadata:
    """What a checkpoint says beside its arrays.

    Attributes:
      config: the configuration, a dict for each section.
      class_names: names of the classes, in the order of the logits.
      num_classes: size of the logits, which may be larger.
      num_examples: images of the training split.
      microbatches: into how many a batch was divided.
      teacher_checksum: CRC-32 of the teacher's variables; None without a teacher.
      bad_images: unreadable images by index, as text, and the step at which each was found.
      metrics: of the evaluation at this step, if there was one.
      shapes: of every array, by its path, such as ``params/conv1/kernel``.
      checksums: CRC-32 of every array's bytes, by its path.
      versions: of the packages that wrote it.
      schema: of the run folder.
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
        """The configuration, checked. Raises ConfigError: it does not fit this version."""
        return freeze(self.config)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that is stored, its own checksum included."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {**values, "checksum": _checksum(values)}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Read what `to_json` returned.

        Raises:
          WorkdirError: another version of flax_resnet wrote it.
          CheckpointError: it is not what was stored.
        """
        if not isinstance(values, Mapping):
            raise CheckpointError("its description is not a JSON object")
        check_schema(values, "the checkpoint")
        found = {key: value for key, value in values.items() if key != "checksum"}
        if values.get("checksum") != _checksum(found):
            raise CheckpointError("its description is not what was saved")
        names = {field.name for field in dataclasses.fields(cls)}
        if missing := names ^ found.keys():
            raise CheckpointError(f"its description does not fit: {', '.join(sorted(missing))}")
        return cls(**{**found, "class_names": tuple(found["class_names"])})


def check_schema(values: Mapping[str, Any], what: str) -> None:
    """Raise WorkdirError where another version of flax_resnet wrote a run folder.

    Args:
      values: the JSON object, with its `schema`; 1 where it has none.
      what: whose it is, for the message.
    """
    schema = values.get("schema", 1)
    if schema == SCHEMA:
        return
    if schema in READERS:
        reader = f"flax_resnet=={READERS[schema]} reads it"
    else:
        reader = f"a flax_resnet newer than {__version__} reads it"
    raise WorkdirError(f"{what} has schema {schema}, this version reads {SCHEMA}: {reader}")


def versions() -> dict[str, str]:
    """Return the installed versions of what a checkpoint depends on."""
    found = {"flax_resnet": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _checksum(values: Mapping[str, Any]) -> int:
    """Return the CRC-32 of a JSON object, whatever the order of its keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return zlib.crc32(text.encode())
