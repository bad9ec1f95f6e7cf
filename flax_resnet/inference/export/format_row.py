"""The rows of the export formats."""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Callable, Iterable

import jax
import numpy as np

from flax_resnet.errors import ConfigError
from flax_resnet.inference.export.program import Program
from flax_resnet.inference.export.signature import Signature
from flax_resnet.settings import Registry, Row

FLATBUFFER = 2**31 - 2**24  # bytes; flatbuffers stop at 2 GiB

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
      packages: modules that `write` imports and that may be missing.
      runtimes: modules that `open` loads the file with: the first one that is installed.
      load: lines of Python that load the file and compute `outputs`, for the model card. ``{input}`` stands for a
        description of `images`, ``{network}`` for the name of the network.
      layout: "NHWC" or "NCHW", of float32 images. Images of uint8 are NHWC in every format.
      largest: the largest size of a file, in bytes; None without a limit.
    """

    file: str
    write: Callable[[Program, pathlib.Path], None]
    open: Callable[[pathlib.Path, Signature], Runtime]
    supports: dict[str, tuple] = dataclasses.field(default_factory=dict)
    packages: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    load: str = ""
    layout: str = "NHWC"
    largest: int | None = None

    @property
    def runtime(self) -> str:
        """The module that `open` uses, or "" if none is installed."""
        return next(filter(_is_installed, self.runtimes), "")

    def check(self, signature: Signature) -> None:
        """Raise ConfigError if the format cannot express the signature, or a package that writes it is missing."""
        for field, allowed in self.supports.items():
            value = getattr(signature, field)
            if value not in allowed:
                problem = f"{self.name} cannot express it"
                choices = " or ".join(map(str, allowed))
                raise ConfigError(problem, key=field, value=value, allowed=choices)
        missing = [name for name in self.packages if not _is_installed(name)]
        if missing:
            raise ConfigError(
                f"needs {' and '.join(missing)}",
                key="format",
                value=self.name,
                cure=self.install(missing),
            )

    def check_size(self, program: Program) -> None:
        """Raise ConfigError if the weights do not fit into the format."""
        leaves = jax.tree.leaves(program.variables)
        half = program.signature.precision == "float16"
        size = sum(leaf.nbytes for leaf in leaves) // (2 if half else 1)
        if self.largest is not None and size > self.largest:
            raise ConfigError(
                f"a file has at most {self.largest / 2**30:.1f} GiB, and the weights have {size / 2**30:.1f}",
                key="format",
                value=self.name,
                cure="export to onnx" if half else "export to onnx, or with float16 weights",
            )

    @staticmethod
    def install(modules: Iterable[str]) -> str:
        """Return the command that installs modules."""
        return f"pip install {' '.join(modules).replace('_', '-')}"


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


FORMATS: Registry[FormatRow] = Registry("flax_resnet.inference.export.formats")
