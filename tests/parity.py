"""Compares the networks with timm's and torchvision's, on the same weights.

    python tests/parity.py --names 'resnet5*'
    python tests/parity.py --gradients --output docs/parity.md

Needs the extra `parity` (timm, torch, torchvision). Prints a row per comparison and exits with 1 if any
failed. The weights are random, a function of each tensor's torch name and shape.
"""

import argparse
import contextlib
import dataclasses
import fnmatch
import gc
import os
import pathlib
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import flax
import jax
import jax.numpy as jnp
import numpy as np
import timm
import torch
import torchvision

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from golden.pairs import (
    FLOAT32_BOUND,
    FLOAT64_BOUND,
    Pair,
    abstract,
    as_arrays,
    distance,
    gradient_errors,
    our_gradients,
    our_loss,
    our_outputs,
    relative,
)
from timm.layers import BatchNormAct2d, StdConv2d, create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import nn
from tqdm import tqdm
from weights_by_name import images_of, last_of_branch, tensors_of

from benchmarks.speed.torch_networks import cifar_resnet
from flax_resnet import create_model
from flax_resnet.models.baselines import BASELINES
from flax_resnet.models.layers.convolution import Conv, Linear
from flax_resnet.weights import from_torch, layout_of, to_torch
from flax_resnet.weights.layouts import LAYOUTS

ROOT = pathlib.Path(__file__).parents[1]
OWN_LIMIT = 1e-5  # of torch's own float32-float64 distance; beyond it float64 is the judge
LOSS_BOUND = 1e-5  # of the first loss in float32, relative
STEPS, LEARNING_RATE, LAST_SCALE = 10, 0.01, 0.1

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2", "alexnet"),
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
)
CIFAR = {
    "resnet20, option A": Pair("cifar_resnet", {"shortcut": "pad"}, "resnet20", {}, 32),
    "resnet20, option B": Pair("cifar_resnet", {}, "resnet20", {"shortcut": "projection"}, 32),
    "preact164": Pair("cifar_preact", {}, "preact164", {}, 32),
    "wrn16_4": Pair("cifar_wide", {}, "wrn16_4", {}, 32),
}
GRADIENTS = (
    *("resnet18", "resnet50", "resnet50d", "resnet26t", "resnet50s", "resnext50_32x4d"),
    *("wide_resnet50_2", "seresnet50", "senet154", "ecaresnet26t", "ecaresnetlight"),
    *("ecaresnet50d_pruned", "resnetblur50", "resnetaa50d", "resnetrs50", "resnet50_gn"),
    *("test_resnet", "resnetv2_18d", "resnetv2_50", "resnetv2_50t", "resnetv2_50d_evos"),
    *("resnetv2_50d_frn", "resnetv2_50d_gn", "resnetv2_50x1_bit", "resnet20, option A"),
    *("preact164", "wrn16_4", "torchvision/alexnet", "torchvision/vgg11", "torchvision/vgg11_bn"),
)
TRAJECTORIES = ("resnet18", "resnet50", "wrn16_4")
FEATURES = ("resnet50", "resnetv2_50")


def timm_names() -> list[str]:
    """Returns all names of timm's resnet.py and resnetv2.py."""
    return sorted({*timm.list_models(module="resnet"), *timm.list_models(module="resnetv2")})


def option_pairs() -> dict[str, Pair]:
    """Returns networks with options that timm has too."""
    pairs = {}
    for name in ("resnet50", "resnet50d", "resnetv2_50d", "senet154"):
        for stride in (8, 16):
            options = {"output_stride": stride}
            pairs[f"{name}, output_stride={stride}"] = Pair(name, options, name, options)
    for name in ("resnet50", "resnetv2_50"):
        for channels in (1, 4):
            label = f"{name}, in_channels={channels}"
            options = {"in_channels": channels}
            pairs[label] = Pair(name, {"in_chans": channels}, name, options, channels=channels)
        for pool in ("max", "avgmax"):
            options = {"global_pool": pool}
            pairs[f"{name}, global_pool={pool}"] = Pair(name, options, name, options)
    return pairs


def all_pairs() -> dict[str, Pair]:
    """Returns every pair whose logits are compared, by label."""
    pairs = {name: Pair(name, {}, name, {}) for name in timm_names()}
    for name in TORCHVISION:
        size = 96 if "res" in name else 224
        pairs[f"torchvision/{name}"] = Pair(f"torchvision/{name}", {}, name, {}, size)
    return pairs | CIFAR | option_pairs()


# The torch side


def _cifar_v2(layers: tuple[int, ...], **options: Any) -> nn.Module:
    net = ResNetV2(
        layers,
        (64, 128, 256),
        num_classes=10,
        stem_chs=16,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
        **options,
    )
    net.stem = nn.Sequential(OrderedDict(conv=create_conv2d(3, 16, 3)))
    return net


def cifar_preact(*, depth: int = 18) -> nn.Module:
    """Builds the pre-activation network of bottlenecks for 32 px."""
    return _cifar_v2((depth,) * 3)


def cifar_wide(*, depth: int = 2) -> nn.Module:
    """Builds WRN-16-4."""
    return _cifar_v2((depth,) * 3, basic=True, bottle_ratio=1.0)


def bit(**options: Any) -> nn.Module:
    """Builds Big Transfer's network of other depths than timm lets one ask for."""
    return ResNetV2(stem_type="fixed", conv_layer=partial(StdConv2d, eps=1e-8), **options)


BUILDERS = {
    "bit": bit,
    "cifar_resnet": cifar_resnet,
    "cifar_preact": cifar_preact,
    "cifar_wide": cifar_wide,
}


def torch_network(pair: Pair) -> nn.Module:
    """Builds the torch side with the weights that it starts from."""
    if pair.torch in BUILDERS:
        return BUILDERS[pair.torch](**pair.torch_options)
    library, _, name = pair.torch.rpartition("/")
    if library:
        return torchvision.models.get_model(name, weights=None, **pair.torch_options)
    return timm.create_model(name, **pair.torch_options)


def torch_shapes(pair: Pair) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of the state dict, without making one."""
    with torch.device("meta"):
        state = torch_network(pair).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def loaded(pair: Pair, tensors: dict[str, np.ndarray]) -> nn.Module:
    """Builds the torch side around these tensors (it may share their memory).

    Raises:
      RuntimeError: a tensor is missing, left over or of another shape.
    """
    with torch.device("meta"):
        net = torch_network(pair)
    if any(tensor.is_meta for name, tensor in net.named_buffers() if name not in tensors):
        net = torch_network(pair)  # it holds constants that no state dict does
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    net.load_state_dict(state, strict=True, assign=True)
    return net.requires_grad_(True).eval()


def to_channels_first(images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Returns [N, H, W, C] as torch's [N, C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(dtype)


def exact() -> contextlib.AbstractContextManager:
    """Keeps float64 where timm's EvoNorm and filter response normalisation would round it to float32."""
    narrow = torch.Tensor.float
    return mock.patch.object(
        torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else narrow(x)
    )


def torch_outputs(net: nn.Module, images: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Returns what the network, cast to `dtype`, makes of [N, H, W, C]."""
    net = net.to(dtype)
    with torch.inference_mode(), exact():
        return net(to_channels_first(images, dtype)).numpy()


# The comparisons


def first_divergence(net: nn.Module, pair: Pair, variables: Any, images: np.ndarray) -> str:
    """Names the first convolution or linear layer whose outputs differ, in float64.

    Args:
      net: the torch side.
      pair: what is compared.
      variables: ours.
      images: [N, H, W, C].

    Returns:
      Its torch name and distance, in the order in which torch calls them; or that there is none.
    """
    theirs: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            # A copy: activations after it may work in place. What a hook returns, torch goes on with.
            theirs[name] = output.detach().numpy().copy()

        return hook

    handles = [
        module.register_forward_hook(keep(name))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad(), exact():
        net.double()(to_channels_first(images, torch.float64))
    for handle in handles:
        handle.remove()
    captured = our_outputs(
        pair,
        variables,
        images,
        "float64",
        mutable=["intermediates"],
        capture_intermediates=lambda module, _: isinstance(module, Conv | Linear),
    )[1]["intermediates"]
    table = LAYOUTS[layout_of(variables)]
    kernels = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    ours = {}
    for path, (output,) in flax.traverse_util.flatten_dict(captured, sep="/").items():
        kernel = path.replace("__call__", "kernel")
        ours[table.place(f"params/{kernel}", kernels[kernel].ndim).module] = output
    for name, reference in theirs.items():
        output = ours[name]
        if output.ndim == 4:
            output = output.transpose(0, 3, 1, 2)
        elif reference.shape[2:] == (1, 1):  # torch has a 1x1 convolution for our linear layer
            reference = reference[:, :, 0, 0]
        if not (error := distance(output, reference)) <= FLOAT64_BOUND:
            if output.shape != reference.shape:
                return f"{name}: {list(output.shape)}, torch's {list(reference.shape)}"
            return f"{name}: {error:.1e}"
    return "no convolution or linear layer"


@dataclasses.dataclass
class Row:
    """What one comparison gave.

    Attributes:
      label: what was compared.
      figures: by column; None where it was not needed.
      failure: why it failed; empty if it did not.
      seconds: that it took.
    """

    label: str
    figures: dict[str, float | str | None]
    failure: str = ""
    seconds: float = 0.0


def _fits(pair: Pair) -> tuple[Any, nn.Module]:
    """Makes weights, takes them to our side and back, and loads what came back into torch.

    Returns:
      Our variables (NumPy) and the torch network.

    Raises:
      AssertionError: a tensor did not come back as it was.
    """
    tensors = tensors_of(torch_shapes(pair))
    variables = from_torch(tensors, abstract(pair))
    back = to_torch(variables)
    for name, tensor in tensors.items():
        if name not in back:
            raise AssertionError(f"{name} did not come back")
        same = back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
        if not same or back[name].tobytes() != tensor.tobytes():
            raise AssertionError(f"{name} came back changed")
    return variables, loaded(pair, back)


def compare_logits(pair: Pair) -> Row:
    """Compares the logits of two images, and the weights there and back.

    Raises:
      AssertionError: the weights did not come back as they were.
      ValueError: they do not fit.
    """
    images = images_of(2, pair.size, pair.channels)
    variables, net = _fits(pair)
    theirs = torch_outputs(net, images, torch.float32)
    theirs64 = torch_outputs(net, images, torch.float64)
    del net
    gc.collect()
    own = distance(theirs, theirs64)
    ours = distance(our_outputs(pair, variables, images, "float32"), theirs)
    ours64 = None
    if not own <= OWN_LIMIT:
        gc.collect()
        ours64 = distance(our_outputs(pair, variables, images, "float64"), theirs64)
    passed = ours <= FLOAT32_BOUND if own <= OWN_LIMIT else ours64 <= FLOAT64_BOUND
    failure = ""
    if not passed:
        net = loaded(pair, to_torch(variables))
        failure = f"first to diverge: {first_divergence(net, pair, variables, images)}"
    elif not distance(theirs64[0], theirs64[1]) > 0.01:
        failure = "the logits do not depend on the image"
    return Row("", {"float32": ours, "torch's own": own, "float64": ours64}, failure)


def compare_features(name: str) -> Row:
    """Compares the feature maps of one of timm's networks, in float64."""
    pair = Pair(name, {}, name, {})
    images = images_of(2, pair.size)
    variables, net = _fits(pair)
    maps = timm.create_model(name, features_only=True)
    missing = maps.load_state_dict(_flattened(net, maps), strict=False).missing_keys
    maps = maps.eval().double()
    with torch.inference_mode(), exact():
        theirs = maps(to_channels_first(images, torch.float64))
    names = ("stem", "stage1", "stage2", "stage3", "stage4")
    ours = our_outputs(pair, variables, images, "float64", features=names)
    figures = {
        key: distance(ours[key].transpose(0, 3, 1, 2), reference.numpy())
        for key, reference in zip(names, theirs, strict=True)
    }
    failure = f"not loaded: {missing}" if missing else ""
    far = [key for key, value in figures.items() if not value <= FLOAT64_BOUND]
    return Row("", figures, failure or (f"{', '.join(far)} differ" if far else ""))


def _flattened(net: nn.Module, maps: nn.Module) -> dict[str, torch.Tensor]:
    """Names the tensors of a network as timm's feature extractor does, which flattens its modules."""
    by_flat = {name.replace(".", "_"): value for name, value in net.state_dict().items()}
    return {
        name: by_flat[flat]
        for name in maps.state_dict()
        if (flat := name.replace(".", "_")) in by_flat
    }


class Training(NamedTuple):
    """Both sides ready to train, dropout off.

    Attributes:
      net: torch's.
      pair: what is compared, our dropout off.
      variables: ours, NumPy.
      images: float64 [4 STEPS, H, W, C], four for each step.
      labels: int64 [4 STEPS].
    """

    net: nn.Module
    pair: Pair
    variables: Any
    images: np.ndarray
    labels: np.ndarray


def _training(pair: Pair, change: Callable[[dict], None] = lambda tensors: None) -> Training:
    if pair.ours in BASELINES:
        pair = pair._replace(torch_options={**pair.torch_options, "dropout": 0.0}, size=96)
        pair = pair._replace(options={**pair.options, "dropout": 0.0})
    tensors = tensors_of(torch_shapes(pair))
    change(tensors)
    variables = from_torch(tensors, abstract(pair))
    net = loaded(pair, tensors).train()
    images = images_of(4 * STEPS, pair.size, pair.channels)
    classes = create_model(pair.ours, **pair.options).num_classes
    labels = np.random.RandomState(0).randint(0, classes, 4 * STEPS)
    return Training(net, pair, variables, images, labels)


def _first_losses(training: Training) -> tuple[float, float]:
    """Returns torch's and our first loss in float32; leaves the torch side as it was."""
    net, pair, variables, images, labels = training
    state = {key: value.clone() for key, value in net.state_dict().items()}
    with torch.no_grad():
        logits = net(to_channels_first(images[:4], torch.float32))
        theirs = nn.functional.cross_entropy(logits, torch.from_numpy(labels[:4])).item()
    net.load_state_dict(state)
    model = create_model(pair.ours, **pair.options)
    arrays = as_arrays(variables, "float32")
    loss, _ = jax.jit(partial(our_loss, model))(
        arrays["params"],
        arrays.get("batch_stats", {}),
        jnp.asarray(images[:4], jnp.float32),
        labels[:4],
    )
    return theirs, float(loss)


def compare_gradients(pair: Pair) -> Row:
    """Compares the gradient of every parameter in float64, and the loss in float32."""
    training = _training(pair)
    theirs32, ours32 = _first_losses(training)
    net, pair, variables, images, labels = training
    with exact():
        logits = net.double()(to_channels_first(images[:4], torch.float64))
    theirs64 = nn.functional.cross_entropy(logits, torch.from_numpy(labels[:4]))
    theirs64.backward()
    theirs64 = theirs64.item()
    reference = {name: value.grad.numpy() for name, value in net.named_parameters()}
    ours64, gradients = our_gradients(pair, variables, images[:4], labels[:4])
    errors = gradient_errors(gradients, reference)
    worst = max(errors, key=errors.get)
    figures = {
        "worst gradient": errors[worst],
        "of": worst,
        "tensors": len(errors),
        "loss float64": relative(ours64, theirs64),
        "loss float32": relative(ours32, theirs32),
        "our own": relative(ours32, ours64),
        "torch's own": relative(theirs32, theirs64),
    }
    far = [name for name, error in errors.items() if not error <= FLOAT64_BOUND]
    failure = f"gradients differ: {', '.join(far[-5:])} ({len(far)})" if far else ""
    if not figures["loss float32"] <= LOSS_BOUND:
        failure += f" first loss in float32: {ours32}, torch's {theirs32}"
    return Row("", figures, failure.strip())


def compare_trajectory(pair: Pair) -> Row:
    """Compares losses and running statistics over ten steps of plain SGD in float64."""
    training = _training(pair, _calm)
    theirs32, ours32 = _first_losses(training)
    net, pair, variables, images, labels = training
    net.double()
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    losses, statistics = [], []
    with jax.enable_x64(True):
        model = create_model(pair.ours, dtype="float64", **pair.options)

        @jax.jit
        def step(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
            gradient = jax.value_and_grad(partial(our_loss, model), has_aux=True)
            (loss, stats), gradients = gradient(params, stats, images, labels)
            return (
                jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradients),
                stats,
                loss,
            )

        arrays = as_arrays(variables, "float64")
        params, stats = arrays["params"], arrays["batch_stats"]
        for start in range(0, len(images), 4):
            x, y = images[start : start + 4], labels[start : start + 4]
            optimizer.zero_grad()
            with exact():
                logits = net(to_channels_first(x, torch.float64))
            theirs = nn.functional.cross_entropy(logits, torch.from_numpy(y))
            theirs.backward()
            optimizer.step()
            params, stats, ours = step(params, stats, jnp.asarray(x), jnp.asarray(y))
            losses.append((float(ours), theirs.item()))
            state = {name: value.numpy() for name, value in net.state_dict().items()}
            for name, value in to_torch({"batch_stats": stats}).items():
                if not name.endswith("num_batches_tracked"):
                    statistics.append(distance(value, state[name]))
    figures = {
        "losses": float(np.max([relative(*pair) for pair in losses])),
        "running statistics": float(np.max(statistics)),
        "first loss": f"{losses[0][1]:.6f}",
        "last loss": f"{losses[-1][1]:.6f}",
        "first loss float32": relative(ours32, theirs32),
        "our own": relative(ours32, losses[0][0]),
        "torch's own": relative(theirs32, losses[0][1]),
    }
    bounds = {
        "losses": FLOAT64_BOUND,
        "running statistics": FLOAT64_BOUND,
        "first loss float32": LOSS_BOUND,
    }
    far = [name for name, bound in bounds.items() if not figures[name] <= bound]
    return Row("", figures, f"{', '.join(far)} differ" if far else "")


def _calm(tensors: dict[str, np.ndarray]) -> None:
    """Lets the residual branches start small, without which ten steps diverge by themselves."""
    for name in tensors:
        if last_of_branch("bn|norm", name.removesuffix(".weight"), tensors):
            tensors[name][:] = LAST_SCALE


# The report


class Section(NamedTuple):
    """A table of the report: its title, what its columns are, and a comparison per label."""

    title: str
    text: str
    compare: Callable[[Any], Row]
    cases: dict[str, Any]


def sections(names: str, gradients: bool) -> list[Section]:
    """Returns what there is to compare, of the labels that match a shell pattern."""
    pairs = all_pairs()
    timms = {name: pairs[name] for name in timm_names()}
    tvs = {k: v for k, v in pairs.items() if k.startswith("torchvision/")}
    found = [
        Section(
            "Networks of timm",
            "float32: ours against torch's. torch's own: its float32 against its float64. float64: ours "
            "against torch's, where torch's own exceeds 1e-5.",
            compare_logits,
            timms,
        ),
        Section("Networks of torchvision", "The same.", compare_logits, tvs),
        Section(
            "Networks for small images",
            "The same; the torch side is put together from timm's blocks.",
            compare_logits,
            CIFAR,
        ),
        Section("Networks with options", "The same.", compare_logits, option_pairs()),
        Section(
            "Feature maps",
            "float64, against timm's `features_only=True`.",
            compare_features,
            {f"{name}, features": name for name in FEATURES},
        ),
    ]
    if gradients:
        found += [
            Section(
                "Gradients",
                "Four images in training mode, cross-entropy, float64 on both sides. worst gradient: "
                "the largest max|difference| / max(max|g|, 1e-3 of the largest |g| of all) over the "
                "gradients g of all parameters. loss float32: ours against torch's. our own, torch's "
                "own: the loss in float32 against float64 on the same side. All relative.",
                compare_gradients,
                {label: pairs[label] for label in GRADIENTS},
            ),
            Section(
                "Trajectories",
                f"{STEPS} steps of SGD (learning rate {LEARNING_RATE}, four new images each, the last "
                f"normalisation of every residual branch scaled by {LAST_SCALE}), float64 on both "
                "sides. losses: the largest relative difference. running statistics: the largest "
                "max|difference| / max|reference| over all tensors after every step.",
                compare_trajectory,
                {label: pairs[label] for label in TRAJECTORIES},
            ),
        ]
    chosen = []
    for section in found:
        cases = {k: v for k, v in section.cases.items() if fnmatch.fnmatch(k, names)}
        if cases:
            chosen.append(section._replace(cases=cases))
    return chosen


def rows_of(section: Section, progress: Callable[[], Any]) -> Iterator[Row]:
    """Runs the comparisons of a section one by one; what one raises is its failure."""
    for label, case in section.cases.items():
        start = time.perf_counter()
        try:
            row = section.compare(case)
        except Exception as error:  # the others are still to be compared
            row = Row("", {}, f"{type(error).__name__}: {error}")
        jax.clear_caches()
        gc.collect()
        progress()
        yield dataclasses.replace(row, label=label, seconds=time.perf_counter() - start)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def _table(rows: list[Row]) -> Iterator[str]:
    columns = next((list(row.figures) for row in rows if row.figures), [])
    yield f"| network | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for row in rows:
        cells = [_text(row.figures.get(column)) for column in columns]
        mark = f" **failed**: {row.failure}" if row.failure else ""
        yield f"| {row.label}{mark} | {' | '.join(cells)} |"
    largest = ([row.figures.get(column) for row in rows] for column in columns)
    largest = ([value for value in column if isinstance(value, float)] for column in largest)
    cells = [_text(float(np.max(column))) if column else "" for column in largest]
    yield f"| **largest** | {' | '.join(cells)} |"


def report(results: list[tuple[Section, list[Row]]], command: str) -> str:
    """Writes the results as a page of Markdown."""
    agree = [
        f"{sum(not row.failure for row in rows)} of {len(rows)} {section.title[0].lower()}{section.title[1:]}"
        for section, rows in results
        if section.compare is compare_logits
    ]
    lines = [
        "# Parity with timm and torchvision",
        "",
        f"The logits of {', '.join(agree)} are torch's on the same weights: max|difference| / max|reference| is "
        f"at most {FLOAT32_BOUND:.0e} in float32, or, where torch's own float32-float64 distance exceeds "
        f"{OWN_LIMIT:.0e}, at most {FLOAT64_BOUND:.0e} in float64.",
        "",
        "- Weights: random, a function of each tensor's torch name and shape, running statistics and scales too "
        "([weights_by_name.py](../tests/weights_by_name.py)). Each set went from the torch layout to Flax "
        "variables and back, came back bit for bit, and was loaded into the torch network with `strict=True`.",
        "- Images: two, random, 96 px (AlexNet and VGG: 224 px; networks for small images: 32 px).",
        "- float64 on torch's side is float64 throughout: where timm's EvoNorm and filter response normalisation "
        "would take their statistics in float32, they are kept from it.",
        f"- Versions: timm {timm.__version__}, torch {torch.__version__.partition('+')[0]}, torchvision "
        f"{torchvision.__version__.partition('+')[0]}, JAX {jax.__version__}, Flax {flax.__version__}; on CPU.",
        "",
        "This page is what the following wrote; it takes about half an hour on two cores and up to 16 GiB of "
        "memory. `--names 'resnet5*'` compares only those. Where logits fail, the first layer whose outputs differ "
        "is named.",
        "",
        "```bash",
        "pip install -e '.[parity]'",
        command,
        "```",
    ]
    for section, rows in results:
        passed = sum(not row.failure for row in rows)
        lines += ["", f"## {section.title}: {passed} of {len(rows)}", "", section.text, ""]
        lines += _table(rows)
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Compares, prints, and writes the page where asked. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Compare with timm and torchvision.")
    parser.add_argument("--names", default="*", help="shell pattern of what to compare")
    parser.add_argument("--gradients", action="store_true", help="training too: gradients, SGD")
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file to write")
    flags = parser.parse_args(arguments)
    chosen = sections(flags.names, flags.gradients)
    if not chosen:
        parser.error(f"--names={flags.names!r} matches nothing")
    total = sum(len(section.cases) for section in chosen)
    results, failures = [], []
    with tqdm(total=total, file=sys.stderr, unit="network") as bar:
        for section in chosen:
            rows = []
            for row in rows_of(section, bar.update):
                rows.append(row)
                figures = "  ".join(
                    f"{k} {_text(v)}" for k, v in row.figures.items() if v is not None
                )
                tqdm.write(
                    f"{section.title}: {row.label:32} {figures}  {row.failure or 'ok'}  {row.seconds:.1f} s",
                    file=sys.stdout,
                )
                sys.stdout.flush()
                if row.failure:
                    failures.append(f"{section.title}: {row.label}: {row.failure}")
            results.append((section, rows))
    if flags.output:
        switch = " --gradients" if flags.gradients else ""
        names = "" if flags.names == "*" else f" --names '{flags.names}'"
        output = os.path.relpath(flags.output, ROOT)
        command = f"python tests/parity.py{names}{switch} --output {output}"
        flags.output.write_text(report(results, command), encoding="utf-8")
    print(f"{total - len(failures)} of {total} agree")
    for failure in failures:
        print(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    if "JAX_PLATFORMS" not in os.environ:
        jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
