"""The training state: everything that changes from step to step."""

from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from flax_resnet.config import Config
from flax_resnet.errors import ConfigError
from flax_resnet.models import create_model
from flax_resnet.models.model_section import Model
from flax_resnet.models.network import Network
from flax_resnet.optim import ema
from flax_resnet.optim.evaluation_metrics import EMA
from flax_resnet.settings import UNSET
from flax_resnet.training import sharding
from flax_resnet.training.step import loss_scale


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes. Random keys are derived from seed and step, so they are not stored.

    Attributes:
      step: int32 scalar, number of updates made.
      params: weights, at least float32.
      batch_stats: running statistics, at least float32; empty without batch normalisation.
      opt_state: state of the optimizer, such as the momentum.
      ema: moving average, {"params", "batch_stats"}; {} without one.
      loss_scale: state of the loss scaling (loss_scale.py) for float16; otherwise {}.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    loss_scale: Any = flax.struct.field(default_factory=dict)


def compute_dtype(section: Model) -> str:
    """Return the compute dtype; "auto" is bfloat16 on GPU and TPU, and float32 on CPU."""
    if section.dtype != "auto":
        return section.dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def variables_by_prefix(state: TrainState) -> dict[str, dict[str, Any]]:
    """Return {metric prefix: {"params", "batch_stats"}}; the prefix is "", and "ema_" for the moving average."""
    weights = {"": {"params": state.params, "batch_stats": state.batch_stats}}
    return weights | ({EMA: state.ema} if state.ema else {})


def build_model(config: Config, num_classes: int) -> Network:
    """Return the configured network. Raises ConfigError for invalid options."""
    section = config.model
    options = section.options() | {"dtype": compute_dtype(section)}
    model = create_model(section.name, num_classes=num_classes, **options)
    if config.ema.bn_batches and not model.measures_batches:
        norm = "" if section.norm is UNSET else f" with model.norm={section.norm!r}"
        raise ConfigError(
            f"{section.name}{norm} has no batch statistics to measure",
            key="ema.bn_batches",
            value=config.ema.bn_batches,
            allowed="0",
        )
    if config.schedule.drop_rates != "constant" and not (
        getattr(model, "dropout", 0.0) or getattr(model, "drop_path", 0.0)
    ):
        raise ConfigError(
            f"model.dropout and model.drop_path of {section.name} are both 0",
            key="schedule.drop_rates",
            value=config.schedule.drop_rates,
            allowed="'constant'",
            cure="or set one of them above 0",
        )
    return model


def initial_state(
    config: Config, model: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return the initial state for the configured seed, placed on the mesh as `train.sharding` says."""

    # This program runs once, so fast compilation matters more than fast code. For the random numbers of ResNet-50's
    # kernels, XLA:CPU compiles for 12.5 s at its default level 3, and for 7.2 s at level 1. For four small blocks,
    # whose loops it unrolls, it takes 11.9 s and 2.5 s. On CPU, both levels give the same random numbers, in
    # 0.3 s.
    def placed_state(key: jax.Array) -> TrainState:
        state = make_state(config, model, optimizer, key)
        return sharding.constrained(state, mesh, config.train.sharding)

    init = jax.jit(placed_state, compiler_options={"xla_backend_optimization_level": 1})
    return init(jax.random.key(config.train.seed))


def make_state(
    config: Config, model: Network, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """Return the initial state with weights drawn from the key. Call it under `jax.jit` or `jax.eval_shape`."""
    size = config.data.image_size
    image = jnp.zeros((1, size, size, model.in_channels), jnp.float32)
    variables = model.init(key, image, train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    weights = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=ema.start(weights) if config.averages_weights else {},
        loss_scale=loss_scale.start(config.model),
    )


def check_training(config: Config, model: Network, shapes: TrainState, size: int) -> None:
    """Raise ConfigError if the network cannot train on images of `size` px. Nothing is compiled."""
    rows = config.train.batch_size
    images = jax.ShapeDtypeStruct((rows, size, size, model.in_channels), jnp.float32)

    def forward(params: Any, batch_stats: Any, images: jax.Array) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        keys = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=keys)

    jax.eval_shape(forward, shapes.params, shapes.batch_stats, images)


def abstract_state(
    config: Config, model: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return the state's shapes, dtypes and shardings, without allocating arrays."""
    shapes = jax.eval_shape(partial(make_state, config, model, optimizer), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        sharding.state_shardings(shapes, mesh, config.train.sharding),
    )
