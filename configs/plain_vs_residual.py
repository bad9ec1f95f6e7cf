"""The degradation experiment: networks without shortcuts against residual ones, on CIFAR-10.

python -m flax_resnet.main --config configs/plain_vs_residual.py:plain56 --workdir runs/plain56
    and the same with plain20, resnet20 and resnet56.

Expected: plain56 ends worse than plain20, and resnet56 better than resnet20 (published, figure 6);
    not yet run here.
Source: He et al. 2016, "Deep residual learning", section 4.2.
Cost: 64,000 steps of 128 images each. Needs `python -m flax_resnet.prepare --name=cifar10`.
"""

from flax_resnet.config import default_config
from flax_resnet.errors import ConfigError, suggestion

NETWORKS = ("plain20", "resnet20", "plain56", "resnet56")


def get_config(network: str = "plain20"):
    """Returns the configuration for one of the networks; all else is the same."""
    if network not in NETWORKS:
        raise ConfigError(
            f"configs/plain_vs_residual.py:{network}: {suggestion(network, NETWORKS)}"
        )
    config = default_config()
    config.model.name = network
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.augment.mean = (0.4914, 0.4822, 0.4465)
    config.augment.std = (0.2470, 0.2435, 0.2616)
    config.augment.shift = 4
    config.augment.flip = True
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_rules = ()
    config.schedule.name = "multi_step"
    config.schedule.unit = "steps"
    config.schedule.milestones = (32_000.0, 48_000.0)
    config.train.batch_size = 128
    config.train.epochs = 164
    config.train.eval_batch_size = 1000
    config.train.checkpoint_every = 5.0
    return config
