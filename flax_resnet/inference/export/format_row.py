"""The rows of the export formats."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from flax_resnet.errors import ConfigError
from flax_resnet.inference.export.program import Program
from flax_resnet.inference.export.signature import Signature
from flax_resnet.settings import Registry, Row

Runtime = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormatRow(Row):
    """One format of exported models.

    Attributes:
      file: name of the file or folder that `write` makes in the folder of the export.
      write: writes the program to this path.
      open: loads the written path in the format's own runtime, without flax_resnet; returns a function from images
        to outputs [N, K]. The images are as the signature says, in `layout`.
      supports: {field of `Signature`: the values that the format can express}; every other field allows all values.
      packages: {what for: package} that `write` and `open` import and that the package does not need otherwise.
      layout: "NHWC" or "NCHW", of float32 images. Images of uint8 are NHWC in every format.
    """

    file: str
    write: Callable[[Program, pathlib.Path], None]
    open: Callable[[pathlib.Path, Signature], Runtime]
    supports: dict[str, tuple] = dataclasses.field(default_factory=dict)
    packages: tuple[str, ...] = ()
    layout: str = "NHWC"

    def check(self, signature: Signature) -> None:
        """Raise ConfigError if the format cannot express the signature."""
        for field, allowed in self.supports.items():
            value = getattr(signature, field)
            if value not in allowed:
                problem = f"{self.name} cannot express it"
                choices = " or ".join(map(str, allowed))
                raise ConfigError(problem, key=field, value=value, allowed=choices)


FORMATS: Registry[FormatRow] = Registry("flax_resnet.inference.export.formats")
