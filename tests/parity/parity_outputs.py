"""Comparisons of what both sides put out: logits, feature maps, and the first layer that diverges."""

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import flax
import numpy as np
import timm
import torch
from golden.pairs import FLOAT32_BOUND, FLOAT64_BOUND, Pair, abstract, distance, our_outputs
from parity_networks import exact, loaded, to_channels_first, torch_outputs, torch_shapes
from torch import nn
from weights_by_name import images_of, tensors_of

from flax_resnet.models.layers.convolution import Conv, Linear
from flax_resnet.weights import from_torch, layout_of, to_torch
from flax_resnet.weights.layouts import LAYOUTS

OWN_LIMIT = 1e-5  # of torch's own float32-float64 distance; beyond it float64 is the judge


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
        ours[table.counterpart(f"params/{kernel}", kernels[kernel].ndim).module] = output
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
