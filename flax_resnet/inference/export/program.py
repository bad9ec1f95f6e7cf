"""The function that leaves in an export: from images to logits or probabilities, with its weights."""

import contextlib
import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from flax_resnet.augment import evaluation_images, evaluation_views
from flax_resnet.config import Config
from flax_resnet.data.images import prepare_image
from flax_resnet.errors import ConfigError, one_line
from flax_resnet.inference.classifier import Classifier
from flax_resnet.inference.evaluation import all_class_names
from flax_resnet.inference.export.signature import Signature
from flax_resnet.models.folding import fold_batch_norm
from flax_resnet.models.network import Network
from flax_resnet.models.stacking import unstack_blocks
from flax_resnet.ops import dispatch
from flax_resnet.weights.fill import unrolled_model

BATCH = "batch"  # name of the free dimension


@dataclasses.dataclass(frozen=True)
class Program:
    """A network in float32, as every format receives it: unrolled, with folded batch normalisation.

    Attributes:
      model: the linen module, without `scan_blocks`, computing in float32.
      variables: its variables, float32 arrays of NumPy.
      config: the configuration for evaluation; `data.image_size` is that of the signature.
      class_names: one name per output.
      signature: what the exported model takes and returns.
      classifier: the network as it was given.
    """

    model: Network
    variables: dict[str, Any]
    config: Config
    class_names: tuple[str, ...]
    signature: Signature
    classifier: Classifier

    def logits(self, variables: Any, images: jax.Array) -> jax.Array:
        """Return float32 logits [N, K], averaged over the views of the run's evaluation.

        Args:
          variables: `self.variables`, or tracers of their shapes.
          images: float32 [N, S, S, C], normalised; or uint8 [N, S, S, 3] if `signature.takes_bytes`.
        """
        if self.signature.takes_bytes:
            images = evaluation_images(images, self.config.augment)
        shares, views = zip(*evaluation_views(images, self.config.augment), strict=True)
        outputs = [self.model.apply(variables, view, train=False) for view in views]
        total: jax.Array = functools.reduce(operator.add, map(_scaled, shares, outputs))
        return total.astype(jnp.float32)

    def outputs(self, variables: Any, images: jax.Array) -> jax.Array:
        """Return what the exported model returns, [N, K]: logits, or probabilities."""
        logits = self.logits(variables, images)
        return jax.nn.softmax(logits, axis=-1) if self.signature.softmax else logits

    def input(self, batch: Any = None) -> jax.ShapeDtypeStruct:
        """Return the shape [N, S, S, C] and dtype of the images.

        Args:
          batch: N; None for that of the signature, which may be a symbolic dimension.
        """
        if batch is None:
            batch = self.signature.batch_size or jax_export.symbolic_shape(BATCH)[0]
        size, takes_bytes = self.signature.image_size, self.signature.takes_bytes
        channels = 3 if takes_bytes else self.model.in_channels
        dtype = jnp.uint8 if takes_bytes else jnp.float32
        return jax.ShapeDtypeStruct((batch, size, size, channels), dtype)

    def prepared(self, image: Any) -> np.ndarray:
        """Return an image (as in `Classifier.predict`) as uint8 [S, S, 3], prepared as in evaluation."""
        return prepare_image(image, self.config.data, name="image")

    def model_input(self, pixels: np.ndarray) -> np.ndarray:
        """Return the input of the exported model, NHWC, for prepared images uint8 [N, S, S, 3]."""
        if self.signature.takes_bytes:
            return pixels
        return np.asarray(evaluation_images(jnp.asarray(pixels), self.config.augment))

    def expected(self, pixels: np.ndarray) -> np.ndarray:
        """Return the outputs [N, K] that the exported model must give for prepared images uint8 [N, S, S, 3]."""
        given = self.unfolded()
        with exact():
            outputs = jax.jit(given.outputs)(given.variables, self.model_input(pixels))
        return np.asarray(outputs)

    def unfolded(self) -> "Program":
        """Return the program of the network as it was given, in float32: what every export must agree with."""
        model = self.classifier.model.clone(dtype=jnp.dtype("float32"))
        return dataclasses.replace(self, model=model, variables=self.classifier.variables)


def program_of(classifier: Classifier, signature: Signature) -> Program:
    """Return the program of a classifier.

    Raises:
      ConfigError: the network has no head, or cannot take images of this size.
    """
    model = unrolled_model(classifier.model).clone(dtype=jnp.dtype("float32"))
    if not model.num_classes:
        raise ConfigError(
            "the network has no head", key="num_classes", value=0, cure="export a network with one"
        )
    folded = jax.device_get(unstack_blocks(classifier.variables))

    def fold(leaves: Any) -> Any:
        return fold_batch_norm(model, leaves)

    with exact():
        shapes = jax.eval_shape(lambda: folded)
        # Without anything to fold, a copy would only cost memory: a BiT-152x4 has 3.7 GB.
        if len(jax.tree.leaves(jax.eval_shape(fold, shapes))) != len(jax.tree.leaves(shapes)):
            folded = jax.device_get(jax.jit(fold)(folded))
    config = classifier.config.evaluating()
    data = config.data.but(image_size=signature.image_size, eval_size=0)
    config = dataclasses.replace(config, data=data)
    names = all_class_names(classifier.class_names, model.num_classes)
    program = Program(model, folded, config, names, signature, classifier)
    _check_image_size(program)
    return program


def _check_image_size(program: Program) -> None:
    """Raise ConfigError if the network cannot compute images of this size."""
    size, shift = program.signature.image_size, program.config.augment.eval_shift
    name = program.config.model.name
    if size <= shift:
        allowed = f"above augment.eval_shift={shift}, by which views are shifted"
        raise ConfigError(key="image_size", value=size, allowed=allowed)
    try:
        with exact():
            jax.eval_shape(program.logits, program.variables, program.input(1))
        return
    except (TypeError, ValueError, ZeroDivisionError) as error:
        problem = f"{name} cannot take images of this size: {one_line(error)}"
        cause = error
    cure = f"its usual size is {program.model.image_size}"
    raise ConfigError(problem, key="image_size", value=size, cure=cure) from cause


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Trace with XLA's own operations and float32 products, which every platform computes alike."""
    with dispatch.operations("plain"), jax.default_matmul_precision("float32"):
        yield


def _scaled(share: float, output: jax.Array) -> jax.Array:
    return output if share == 1 else share * output
