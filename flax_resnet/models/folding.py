"""Fold batch normalisation into the preceding convolutions, for inference."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jax import lax

from flax_resnet.models.layers.convolution import Conv
from flax_resnet.models.layers.normalization import BatchNorm
from flax_resnet.models.network import Network

Path = tuple[str, ...]
Variables = dict[str, Any]


def fold_batch_norm(model: Network, variables: Variables) -> Variables:
    """Fold every BatchNorm that directly follows a convolution into that convolution.

    ``(conv(x, kernel) + b - mean) s + bias = conv(x, kernel s) + bias + (b - mean) s``, with
    ``s = scale / sqrt(var + epsilon)``. The folded layer keeps only its bias, and the same model applies the result
    with ``train=False``. Any other BatchNorm is not changed: for example, one before the convolutions of a
    pre-activation block or after weight standardisation.

    Args:
      model: a network from `create_model`.
      variables: its `params` and `batch_stats`.

    Returns:
      Variables that give the same logits up to rounding. Training with them raises ConfigError.
    """
    folded = jax.tree.map(lambda leaf: leaf, unfreeze(variables))  # copies the dicts
    for norm_path, (conv_path, epsilon) in _pairs(model, variables).items():
        conv, norm = _at(folded["params"], conv_path), _at(folded["params"], norm_path)
        if "scale" not in norm:
            continue  # folded already
        stats = _at(folded["batch_stats"], norm_path)
        factor = norm.pop("scale") * lax.rsqrt(stats.pop("var") + epsilon)
        own_bias = conv.get("bias", 0)
        norm["bias"] = norm["bias"] + (own_bias - stats.pop("mean")) * factor
        # [..., O] times [..., K, K, I, O]: scanned blocks have one more leading axis.
        conv["kernel"] = conv["kernel"] * factor[..., None, None, None, :]
        if "bias" in conv:
            conv["bias"] = jnp.zeros_like(own_bias)
    return folded


def _at(tree: Variables, path: Path) -> Variables:
    for name in path:
        tree = tree[name]
    return tree


def _pairs(model: Network, variables: Variables) -> dict[Path, tuple[Path, float]]:
    """Return {path of a BatchNorm: (path of the convolution that feeds it, the BatchNorm's epsilon)}."""
    pairs, convolved = {}, []  # scan calls a block several times

    def record(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        result = call(*args, **kwargs)
        module = context.module
        if isinstance(module, Conv) and module.standardize is None:
            convolved.append((result, module.path))
        if isinstance(module, BatchNorm):
            # Both must be in one block: a pre-activation stem feeds the first BatchNorm, but also the shortcut.
            for x, path in convolved:
                if x is args[0] and path[:-1] == module.path[:-1]:
                    pairs[module.path] = path, module.epsilon
        return result

    images = jax.ShapeDtypeStruct((1, 224, 224, model.in_channels), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, images)
    return pairs
