"""A trained network with its classes and preprocessing, as `flax_resnet.load` returns it."""

import dataclasses
import functools
import itertools
import operator
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flax_resnet.augment import evaluation_images, evaluation_views
from flax_resnet.augment.augment_section import Augment
from flax_resnet.config import Config
from flax_resnet.data.images import each_image, prepare_image
from flax_resnet.errors import ConfigError, DataError, WeightsError
from flax_resnet.inference.heat_maps import class_indices, heat_maps, make_heat, padded
from flax_resnet.inference.prediction import Prediction, Unreadable
from flax_resnet.inference.pretrained_config import pretrained_config
from flax_resnet.models import create_model
from flax_resnet.models.folding import fold_batch_norm
from flax_resnet.models.model_section import IMAGE_CHANNELS
from flax_resnet.models.network import Network
from flax_resnet.ops import dispatch
from flax_resnet.settings import LARGEST_INT
from flax_resnet.training.matmul_precision import matmul_precision
from flax_resnet.training.runs.load import LoadedRun, load_run
from flax_resnet.weights import channels_of, classes_of, imagenet_classes
from flax_resnet.weights.fill import fill, unrolled_model
from flax_resnet.weights.opening import is_repository, open_repository, open_weights


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model, its variables, the names of its classes, and its preprocessing.

    Attributes:
      model: the linen module.
      variables: {"params": ..., "batch_stats": ...}.
      class_names: one name per class.
      config: the configuration of its training; it holds image size, crop, mean and std.
      step: number of updates made.
    """

    model: Network
    variables: dict[str, Any]
    class_names: tuple[str, ...]
    config: Config
    step: int

    def predict(
        self,
        images: np.ndarray | Iterable,
        *,
        batch_size: int = 64,
        skip_unreadable: bool = False,
    ) -> Prediction:
        """Classify images as in the run's evaluation (`data.eval_size`, `augment.eval_flip`, `augment.eval_shift`).

        The images are read and prepared batch by batch.

        Args:
          images: uint8 [N, H, W, 3] of any size; an iterable of file paths, encoded images (bytes), Pillow images
            or arrays [H, W, 3]; or a single path, encoded image or Pillow image.
          batch_size: largest number of images per call of the compiled network; the last batch is padded.
          skip_unreadable: whether to skip images that cannot be read, and to list them in the result.

        Raises:
          ConfigError: `batch_size` is below 1.
          DataError: an image cannot be read, or an array is not uint8 [H, W, 3]. The error names the file, or the
            position of the image.
        """
        unreadable: list[Unreadable] | None = [] if skip_unreadable else None
        computed = self._computed(images, ("logits",), batch_size, self.config.augment, unreadable)
        logits = computed["logits"].astype(np.float32)
        probabilities = np.array(jax.nn.softmax(logits, axis=-1))
        labels = probabilities.argmax(axis=1).astype(np.int32)
        skipped = [image.position for image in unreadable or ()]
        labels[skipped], probabilities[skipped] = -1, np.nan
        return Prediction(labels, probabilities, tuple(unreadable or ()))

    def features(
        self,
        images: np.ndarray | Iterable,
        names: Sequence[str] = ("pre_logits",),
        *,
        batch_size: int = 64,
    ) -> dict[str, np.ndarray]:
        """Compute features of images, such as the vectors before the head.

        Args:
          images: as in `predict`.
          names: keys of ``model.feature_info()``: stem, stage1, ..., pre_logits, logits.
          batch_size: as in `predict`.

        Returns:
          {name: array}; arrays are maps [N, H, W, C] or vectors [N, C].

        Raises:
          ConfigError: a name is unknown, `names` is empty, or `batch_size` is below 1.
          DataError: as in `predict`.
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        if not names:
            raise ConfigError(
                "no feature is named",
                key="names",
                value=names,
                allowed=self.model.feature_info(),
            )
        return self._computed(images, names, batch_size, views=Augment())

    def explain(
        self,
        images: np.ndarray | Iterable,
        classes: int | str | Sequence[int | str] | None = None,
        *,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Compute heat maps of the parts of each image that speak for a class, by Grad-CAM; see `grad_cam`.

        Args:
          images: as in `predict`.
          classes: the index or the name of a class, or one for each image; None for the predicted class.
          batch_size: as in `predict`.

        Returns:
          float32 [N, S, S], each map scaled to [0, 1]; S is the size of the network's input (`data.eval_size`).

        Raises:
          ConfigError: there is no such class, or another number of classes than images; or `grad_cam` raises it.
          DataError: as in `predict`.
        """
        chosen = class_indices(classes, self.class_names, self.model.num_classes)
        batches = self._batches(images, _checked_batch_size(batch_size), None)
        return heat_maps(functools.partial(self._heat, self._folded), batches, chosen, batch_size)

    def _computed(
        self,
        images: np.ndarray | Iterable,
        names: tuple[str, ...],
        batch_size: int,
        views: Augment,
        unreadable: list[Unreadable] | None = None,
    ) -> dict[str, np.ndarray]:
        """Compute features of images, averaged over `evaluation_views`.

        Unreadable images are appended to `unreadable`, and black pixels replace them; None to raise DataError.
        """
        batch_size = _checked_batch_size(batch_size)
        parts: list[dict[str, np.ndarray]] = []
        for pixels in self._batches(images, batch_size, unreadable):
            rows = padded(pixels, batch_size if parts else 0, batch_size)
            features = self._forward(self._folded, rows, names, views)
            parts.append({name: np.asarray(x)[: len(pixels)] for name, x in features.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _batches(
        self, images: np.ndarray | Iterable, batch_size: int, unreadable: list[Unreadable] | None
    ) -> Iterator[np.ndarray]:
        """Yield prepared images, uint8 [n, S, S, 3], with n at most `batch_size`; at least one batch."""
        data = self.config.evaluating().data
        blank = np.zeros((data.image_size, data.image_size, 3), np.uint8)

        def prepared(number: int, image: Any) -> np.ndarray:
            try:
                return prepare_image(image, data, name=f"image {number}")
            except DataError as error:
                if unreadable is None:
                    raise
                unreadable.append(Unreadable(number, error.key, error.problem))
                return blank

        pixels = itertools.starmap(prepared, enumerate(each_image(images)))
        batch = list(itertools.islice(pixels, batch_size))
        yield np.stack(batch) if batch else blank[None][:0]
        while batch := list(itertools.islice(pixels, batch_size)):
            yield np.stack(batch)

    @functools.cached_property
    def _folded(self) -> dict[str, Any]:
        """The variables with folded batch normalisation.

        A ResNet-50 then takes 0.85 of the time (batch 16, two cores).
        """
        fold = jax.jit(lambda variables: fold_batch_norm(self.model, variables))
        with matmul_precision(self.config):
            return fold(self.variables)

    @functools.cached_property
    def _forward(self) -> Any:
        def forward(
            variables: dict, pixels: jax.Array, names: tuple[str, ...], views: Augment
        ) -> dict:
            images = evaluation_images(pixels, self.config.augment)
            shares, inputs = zip(*evaluation_views(images, views), strict=True)
            apply = functools.partial(self.model.apply, variables, train=False, features=names)
            with matmul_precision(self.config):
                outputs = [apply(view) for view in inputs]
            return jax.tree.map(lambda *x: sum(map(operator.mul, shares, x)), *outputs)

        options = dispatch.compiler_options()
        return jax.jit(forward, static_argnums=(2, 3), compiler_options=options)

    @functools.cached_property
    def _heat(self) -> Any:
        return make_heat(self.model, self.config)


def _checked_batch_size(batch_size: Any) -> int:
    if not isinstance(batch_size, int | np.integer) or not 1 <= batch_size <= LARGEST_INT:
        allowed = f"a whole number from 1 to {LARGEST_INT:,}"
        raise ConfigError(key="batch_size", value=batch_size, allowed=allowed)
    return int(batch_size)


def load(
    path: str | pathlib.Path, checkpoint: str | int = "last", *, ema: bool = True
) -> Classifier:
    """Load a trained network from its run folder. No other file is needed.

    Args:
      path: the run folder.
      checkpoint: "last", "best" (by the run's `train.monitor`), or a saved step.
      ema: load the moving average if the run kept one (`config.ema`); otherwise load the weights.

    Raises:
      CheckpointError: there is no such run or checkpoint, or the checkpoint is corrupted.
      WorkdirError: another version of flax_resnet wrote the run.
    """
    return classifier_of(load_run(path, checkpoint), ema=ema)


def classifier_of(run: LoadedRun, *, ema: bool = True) -> Classifier:
    """Return the classifier of a run that was read; `ema` as for `load`."""
    variables = run.best_variables(ema=ema)
    return Classifier(run.model, variables, run.class_names, run.config, run.step)


def load_pretrained(
    name: str,
    *,
    weights: str | pathlib.Path = "",
    num_classes: int | None = None,
    in_channels: int | None = None,
    **options: Any,
) -> Classifier:
    """Load a network with weights made by timm, torchvision, Hugging Face or BiT.

    Args:
      name: the network, or timm's weights for it, such as "resnet50.a1_in1k"; or a repository of the Hugging Face
        hub, USER/NAME or USER/NAME@REVISION, or a folder like one.
      weights: a weights file that `read_tensors` reads, or a folder like a repository; empty for timm's weights on
        the hub or in its local cache.
      num_classes: number of classes. If the weights have another number, the head is freshly initialized. 0 for no
        head; None for the head of the weights.
      in_channels: number of channels of the images, 3 for colour or 1 for grey; the first convolution is adapted as
        in timm. None for the channels of the weights. `create_model` makes networks for other numbers.
      **options: options of `create_model`, such as ``dtype="bfloat16"`` or ``output_stride=8``.

    Returns:
      The `Classifier`. Its `config` holds the preprocessing of the weights.

    Raises:
      ConfigError: the network or an option is unknown or invalid.
      WeightsError: there are no such weights, they take images of other channels, or they do not fit the network;
        one line lists all mismatches.
    """
    if not isinstance(name, str):
        raise ConfigError(key="name", value=name, allowed="a network's name, such as 'resnet50'")
    if in_channels is not None and in_channels not in IMAGE_CHANNELS:
        raise ConfigError(
            key="in_channels",
            value=in_channels,
            allowed="3 for colour images, or 1 for grey images",
            cure="for other arrays, fill a network from create_model by flax_resnet.weights.fill.fill",
        )
    asked = {"num_classes": num_classes, "in_channels": in_channels}
    asked = {key: value for key, value in asked.items() if value is not None}
    if is_repository(name) and not weights:
        tensors, about = open_repository(name)
        architecture = about.model
    else:
        architecture = name.partition(".")[0]
        create_model(
            architecture, **asked, **options
        )  # raises for a wrong name before any download
        tensors, about = open_weights(name, weights)
    options = {**dict(about.options), **options}
    classes = classes_of(tensors)
    wanted = classes if num_classes is None else num_classes
    channels = channels_of(tensors) if in_channels is None else in_channels
    if channels not in IMAGE_CHANNELS:
        raise WeightsError(
            f"take images of {channels} channels",
            key="weights",
            value=str(weights) or name,
            allowed="weights for images of 3 channels, or of 1",
        )
    model = create_model(architecture, num_classes=wanted, in_channels=channels, **options)
    initial = None
    if num_classes is not None and wanted != classes:
        image = jnp.zeros((1, 224, 224, channels))
        plain = unrolled_model(model)
        initial = jax.jit(lambda: plain.init(jax.random.key(0), image, train=False))()
    variables = fill(model, tensors, initial=initial, adapt_stem=in_channels is not None)
    names = about.class_names if wanted == len(about.class_names) else ()
    if not names and wanted == classes == 1000:
        names = imagenet_classes()[1]
    return Classifier(
        model,
        jax.device_put(variables),
        tuple(names or map(str, range(wanted))),
        pretrained_config(about, model, architecture, options),
        step=0,
    )
