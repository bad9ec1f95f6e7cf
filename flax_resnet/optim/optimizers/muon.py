"""Muon: momentum with orthogonalised updates for the kernels of convolutions, Adam for all other parameters."""

from typing import Any

import jax
import optax
from optax import contrib

from flax_resnet.optim.optimizer_section import Optimizer, OptimizerRow
from flax_resnet.optim.optimizers.adamw import ADAM


def _direction(section: Optimizer) -> optax.GradientTransformation:
    def flattened(params: optax.Params) -> Any:
        convolution = contrib.MuonDimensionNumbers((0, 1, 2), 3)
        return jax.tree.map(lambda leaf: convolution if leaf.ndim == 4 else None, params)

    muon = contrib.muon(
        1.0,
        beta=section.momentum,
        nesterov=section.nesterov,
        adam_b1=section.betas[0],
        adam_b2=section.betas[1],
        eps=section.epsilon,
        muon_weight_dimension_numbers=flattened,
    )
    return optax.chain(muon, optax.scale(-1.0))  # contrib.muon includes the minus sign; undo it


# Jordan et al. 2024, "Muon".
ROWS = (
    OptimizerRow(
        name="muon",
        help="orthogonalised momentum for the kernels of convolutions, Adam for all other parameters",
        uses={"momentum": 0.9, **ADAM},
        direction=_direction,
    ),
)
