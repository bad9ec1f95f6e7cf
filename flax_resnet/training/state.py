"""What training changes from step to step, and nothing else."""

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
from flax_resnet.optim.metrics import EMA
from flax_resnet.training import sharding
from flax_resnet.training.step import loss_scale


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and writes. Random keys are not here: they are made of seed and step.

    Attributes:
      step: int32 scalar, number of updates made.
      params: weights, at least float32.
      batch_stats: running statistics, at least float32; empty without batch normalisation.
      opt_state: of the optimizer, such as the momentum.
      ema: running mean of params and batch_stats, by these names; {} where none is kept.
      loss_scale: as loss_scale.py has it; {} but for float16.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    loss_scale: Any = flax.struct.field(default_factory=dict)


def compute_dtype(section: Model) -> str:
    """Returns the dtype to compute in: of "auto", bfloat16 on GPU and TPU, and float32 on CPU."""
    if section.dtype != "auto":
        return section.dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def variables_by_prefix(state: TrainState) -> dict[str, dict[str, Any]]:
    """Return {"params", "batch_stats"} by the prefix of their metrics: "", and "ema_" of a moving average."""
    weights = {"": {"params": state.params, "batch_stats": state.batch_stats}}
    return weights | ({EMA: state.ema} if state.ema else {})


def build_model(config: Config, num_classes: int) -> Network:
    """Returns the configured network. Raises ConfigError where its options make no sense."""
    section = config.model
    options = section.options() | {"dtype": compute_dtype(section)}
    groups = options.pop("norm_groups", 1)
    model = create_model(section.name, num_classes=num_classes, **options)
    normalises = getattr(model, "norm", "") == "batch"
    if config.ema.bn_batches and not normalises:
        raise ConfigError(
            f"ema.bn_batches={config.ema.bn_batches}: {section.name} with "
            f"norm={getattr(model, 'norm', 'none')!r} has no batch normalisation to measure; 0 is for none"
        )
    if config.schedule.drop_rates != "constant" and not (
        getattr(model, "dropout", 0.0) or getattr(model, "drop_path", 0.0)
    ):
        raise ConfigError(
            f"schedule.drop_rates={config.schedule.drop_rates!r}: goes with model.dropout or model.drop_path above "
            f"0; {section.name} has both at 0"
        )
    if section.norm_scope == "global":
        return model
    if not normalises:
        raise ConfigError(
            f"model.norm_scope={section.norm_scope!r}: only batch normalisation takes statistics of a "
            f"scope, and {section.name} has norm={getattr(model, 'norm', 'none')!r}"
        )
    return model.clone(norm_groups=jax.device_count() if section.norm_scope == "local" else groups)


def initial_state(
    config: Config, model: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns the state that the seed gives, on every device of the mesh."""
    # It runs once, so that it is compiled fast rather than well: XLA:CPU takes 12.5 s for the random numbers of
    # ResNet-50's kernels at its usual level, 3, and 7.2 s at this one (for four small blocks, whose loops it writes
    # out, 11.9 and 2.5 s). The numbers are the same on CPU, and drawn in 0.3 s either way.
    init = jax.jit(
        partial(make_state, config, model, optimizer),
        out_shardings=sharding.replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 1},
    )
    return init(jax.random.key(config.train.seed))


def make_state(
    config: Config, model: Network, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """Initialises the state, its weights drawn with the key; jit or eval_shape it."""
    size = config.data.image_size
    image = jnp.zeros((1, size, size, model.in_channels), jnp.float32)
    variables = model.init(key, image, train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    kept = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=ema.start(kept, config.ema),
        loss_scale=loss_scale.start(config.model),
    )


def check_training(config: Config, model: Network, shapes: TrainState, size: int) -> None:
    """Raises ConfigError where the network cannot train on batches of images of `size` px; not compiled."""
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
    """Returns the state's shapes and dtypes, replicated over the mesh, without allocating it."""
    shapes = jax.eval_shape(partial(make_state, config, model, optimizer), jax.random.key(0))
    whole = sharding.replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), shapes
    )
