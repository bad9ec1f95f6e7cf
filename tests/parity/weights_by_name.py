"""Weights that depend on a tensor's torch name and shape alone, so that two sides can make the same ones.

NumPy's legacy RandomState is used: its stream is frozen for good.
"""

import re
import zlib

import numpy as np

SMALLEST = "test_resnet"  # of timm's networks, 469,688 parameters


def tensors_of(shapes: dict[str, tuple[int, ...]], dtype=np.float32) -> dict[str, np.ndarray]:
    """Makes non-trivial weights, scales and statistics that keep a deep network's maps of order one."""
    return {
        name: np.zeros(shape, np.int64)
        if name.endswith("num_batches_tracked")
        else _tensor(name, tuple(shape), shapes).astype(dtype)
        for name, shape in shapes.items()
    }


def tensors_for(name, **options):
    """Weights for a network as torch would name them."""
    import jax
    import jax.numpy as jnp

    from flax_resnet import create_model
    from flax_resnet.weights import to_torch

    model = create_model(name, **options)
    image = jnp.zeros((1, 32, 32, model.in_channels))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    return tensors_of({name: x.shape for name, x in to_torch(empty).items()})


def _tensor(name: str, shape: tuple[int, ...], shapes: dict) -> np.ndarray:
    draw = np.random.RandomState(zlib.crc32(name.encode()))
    module, _, leaf = name.rpartition(".")
    if leaf == "running_var":
        return draw.uniform(0.5, 1.5, shape)
    if leaf in ("running_mean", "bias", "tau"):
        return 0.1 * draw.randn(*shape)
    if len(shape) == 1:  # a scale, or EvoNorm's v
        return draw.uniform(0.5, 1.5, shape) * (0.2 if last_of_branch("bn", module, shapes) else 1)
    fan_in = int(np.prod(shape[1:]))
    # A block adds a fifth of its input: hundreds of them must not overflow.
    scale = 0.2 if module.startswith("stages.") and last_of_branch("conv", module, shapes) else 1
    return scale * np.sqrt(2 / fan_in) * draw.randn(*shape)


def last_of_branch(kind: str, module: str, shapes: dict) -> bool:
    """Whether the module is its block's last of that kind (bn2 of bn1, bn2)."""
    match = re.fullmatch(rf"(.*\.\d+\.(?:{kind}))(\d)", module)
    return bool(match) and f"{match[1]}{int(match[2]) + 1}.weight" not in shapes


def images_of(batch: int, size: int, channels: int = 3) -> np.ndarray:
    """Makes images, float64 [N, H, W, C], of order one, each with its own colour and contrast.

    With noise alone a deep network's pooled maps would hardly depend on the image.
    """
    draw = np.random.RandomState(size)
    colour = draw.uniform(-1.5, 1.5, (batch, 1, 1, channels))
    contrast = draw.uniform(0.3, 1.5, (batch, 1, 1, 1))
    return colour + contrast * draw.randn(batch, size, size, channels)
