"""The measured training and inference steps, each as a function that runs one step."""

import ast
import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.speed.interleave import Turn
from flax_resnet.training.memory import prepare_cpu

Program = Callable[[], Any]  # runs one step; returns the array to wait for


class Work(NamedTuple):
    """A step to measure.

    Attributes:
      model: a name of `flax_resnet.list_models()`.
      image_size: in pixels.
      batch_size: images per step.
      classes: number of classes.
      train: True for a training step, False for inference.
      dtype: compute dtype.
    """

    model: str
    image_size: int = 224
    batch_size: int = 16
    classes: int = 1000
    train: bool = True
    dtype: str = "float32"


def batch(work: Work) -> dict[str, np.ndarray]:
    """Return random images, uint8 [N, S, S, 3], and labels, int32 [N]."""
    draw = np.random.default_rng(0)
    shape = (work.batch_size, work.image_size, work.image_size, 3)
    return {
        "image": draw.integers(0, 256, shape, np.uint8),
        "label": draw.integers(0, work.classes, work.batch_size).astype(np.int32),
    }


def normalized(images: np.ndarray) -> np.ndarray:
    """Return float32 images in about [-2, 2]."""
    return (images.astype(np.float32) - 127.5) / 64


class Network(NamedTuple):
    """A network of this package with its configuration, optimizer, mesh and state, set up as in the commands."""

    config: Any
    model: Any
    optimizer: Any
    mesh: Any
    state: Any


def configured(
    model: str, image_size: int, batch_size: int, *, dtype: str, settings: Iterable[str] = ()
) -> Any:
    """Return the configuration for training a network.

    Args:
      model: a name of `flax_resnet.list_models()`.
      image_size: in pixels.
      batch_size: images per step.
      dtype: compute dtype.
      settings: further settings, such as "model.norm_scope=local".

    Raises:
      ConfigError: a setting is unknown or invalid.
    """
    from flax_resnet.config import Config, freeze
    from flax_resnet.errors import ConfigError

    values = dataclasses.asdict(Config())
    values["model"] |= {"name": model, "dtype": dtype}
    values["data"]["image_size"], values["train"]["batch_size"] = image_size, batch_size
    values["optimizer"]["weight_decay"] = 1e-4
    for setting in settings:
        key, is_set, text = setting.partition("=")
        section, dot, name = key.partition(".")
        if not (is_set and dot):
            raise ConfigError(
                key="--settings",
                value=setting,
                allowed="section.name=value, such as model.norm_scope=local",
            )
        values.setdefault(section, {})[name] = _literal(text)
    return freeze(values)


def _literal(text: str) -> Any:
    """Parse a Python literal; return any other text unchanged."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def network(work: Work, settings: Iterable[str] = ()) -> Network:
    """Return the network of a workload, its optimizer and state; `settings` as in `configured`."""
    from flax_resnet.config.plan import Plan, planned_optimizer
    from flax_resnet.training import sharding
    from flax_resnet.training.state import build_model, initial_state

    config = configured(
        work.model, work.image_size, work.batch_size, dtype=work.dtype, settings=settings
    )
    model = build_model(config, work.classes)
    optimizer = planned_optimizer(config, Plan.nominal(work.classes), model)
    mesh = sharding.make_mesh()
    state = initial_state(config, model, optimizer, mesh)
    return Network(config, model, optimizer, mesh, state)


def ours(work: Work, settings: Iterable[str] = ()) -> Program:
    """Return this package's training step with normalisation of the images, or its folded inference.

    `settings` are those of `network`.
    """
    import jax

    from flax_resnet.models.folding import fold_batch_norm
    from flax_resnet.ops import dispatch

    if not work.train:
        _, model, _, _, state = network(work, settings)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        variables = jax.jit(lambda variables: fold_batch_norm(model, variables))(variables)
        infer = jax.jit(
            lambda variables, x: model.apply(variables, x, train=False),
            compiler_options=dispatch.compiler_options(),
        )
        images = jax.device_put(normalized(batch(work)["image"]))
        return lambda: infer(variables, images)
    step, state, data, steps = training(work, settings)
    held = [state]

    def one() -> Any:
        held[0], metrics = step(held[0], data, steps)
        return metrics["loss"]

    return one


def training(work: Work, settings: Iterable[str] = ()) -> tuple[Any, ...]:
    """Return the jitted training step of a workload and its arguments: state, data of the feed, a batch."""
    import jax

    from flax_resnet.training.step.train_step import make_train_step

    config, model, optimizer, mesh, state = network(work, settings)
    images = jax.device_put(batch(work))
    return make_train_step(config, model, optimizer, mesh), state, {"seed": 0}, images


def plain_flax(work: Work) -> Program:
    """Return the step of a plain linen network, jitted in the usual way."""
    import jax
    import jax.numpy as jnp
    import optax

    from benchmarks.speed.plain_flax import PLAIN_FLAX

    model = PLAIN_FLAX[work.model].clone(classes=work.classes, dtype=jnp.dtype(work.dtype))
    data = batch(work)
    images, labels = jax.device_put((normalized(data["image"]), data["label"]))
    variables = jax.jit(lambda: model.init(jax.random.key(0), images[:1], train=False))()
    if not work.train:
        infer = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
        return lambda: infer(variables, images)
    optimizer = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, 0.9))
    step = plain_flax_step(model, optimizer)
    held = [variables, jax.jit(optimizer.init)(variables["params"])]

    def one() -> Any:
        held[0], held[1], loss = step(*held, images, labels)
        return loss

    return one


def plain_flax_step(model: Any, optimizer: Any) -> Any:
    """Return plain linen's jitted step: (variables, opt_state, images, labels) -> variables, opt_state, loss."""
    import jax
    import optax

    def step(variables: Any, opt_state: Any, images: Any, labels: Any) -> tuple:
        def loss_fn(params: Any) -> tuple:
            logits, updated = model.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, opt_state = optimizer.update(grads, opt_state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, **updated}, opt_state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def torch_step(work: Work, library: str = "torchvision", compiled: bool = False) -> Program:
    """Return the step in PyTorch: channels_last, on a GPU if there is one; bfloat16 by autocast."""
    import torch

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True  # tries kernels and picks the fastest, as XLA does
    model = torch_model(work, library).to(device, memory_format=torch.channels_last)
    model.train(work.train)
    call = torch.compile(model) if compiled else model
    data = batch(work)
    images = torch.from_numpy(normalized(data["image"])).to(device).permute(0, 3, 1, 2)
    labels = torch.from_numpy(data["label"]).long().to(device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=work.dtype == "bfloat16")
    if not work.train:

        def infer() -> Any:
            with torch.inference_mode(), autocast:
                return call(images)

        return infer
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> Any:
        with autocast:
            loss = torch.nn.functional.cross_entropy(call(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def torch_model(work: Work, library: str) -> Any:
    """Return the network of torchvision or timm, with a 3x3 stem for `_cifar` names; or ResNet-20."""
    import timm
    import torchvision
    from torch import nn

    from benchmarks.speed.torch_networks import cifar_resnet

    if work.model == "resnet20":
        return cifar_resnet(shortcut="pad", classes=work.classes)
    name, small, _ = work.model.partition("_cifar")
    if library == "timm" or not hasattr(torchvision.models, name):
        model = timm.create_model(name, num_classes=work.classes)
    else:
        model = getattr(torchvision.models, name)(num_classes=work.classes)
    if small:
        model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return model


def take_turns(make: Callable[[Work], Program], work: Work, seconds: float, keep: bool) -> Turn:
    """Return a function that takes a turn: it runs steps for `seconds`, and returns images per second.

    Args:
      make: builds the program of a workload.
      work: the workload.
      seconds: length of a turn, which has at least two steps; two warm-up steps come first.
      keep: whether to call `memory.prepare_cpu`, as the commands of this package do on CPU.
    """
    if keep:
        prepare_cpu()
    program = make(work)

    def elapsed(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):  # queued on a GPU, as in training
            result = program()
        wait(result)
        return time.perf_counter() - began

    def turn(number: int) -> float:
        del number
        elapsed(1)
        steps = max(2, round(seconds / elapsed(1)))
        return steps * work.batch_size / elapsed(steps)

    return turn


def wait(result: Any) -> None:
    """Block until a JAX array or a PyTorch tensor is computed."""
    if hasattr(result, "block_until_ready"):
        result.block_until_ready()
    elif result.is_cuda:
        import torch

        torch.cuda.synchronize()
