"""Networks on CIFAR-10, trained as in the papers of He et al. The argument after the colon is the network.

python -m flax_resnet.main --config configs/cifar_he2016.py:resnet20 --workdir runs/resnet20

Expected: the test error (published; not yet run here to completion)
    resnet20     8.75 %
    resnet56     6.97 %
    resnet110    6.43 % (best of five)
    preact164    5.46 %
    plain20 and plain56 have no shortcuts. They reproduce the degradation experiment (figure 6): plain56 ends worse
    than plain20, but resnet56 ends better than resnet20.
Source: He et al. 2016, "Deep residual learning", section 4.2; preact164: He et al. 2016, "Identity mappings in deep
residual networks", appendix.
Cost: 64,000 steps of 128 images. Needs `python -m flax_resnet prepare --name=cifar10`.
"""

from flax_resnet.config import default_config
from flax_resnet.errors import ConfigError

NETWORKS = ("resnet20", "resnet56", "resnet110", "preact164", "plain20", "plain56")
WARMED_UP = ("resnet110", "preact164")


def get_config(network: str = "resnet20"):
    """Return the configuration for one of the networks.

    The papers train for 64,000 steps. This recipe trains for 164 epochs of 390 steps, 40 steps fewer.
    """
    if network not in NETWORKS:
        raise ConfigError(key="configs/cifar_he2016.py", value=network, allowed=NETWORKS)
    config = default_config()
    config.model.name = network
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.augment.mean = (0.4914, 0.4822, 0.4465)
    config.augment.std = (0.2470, 0.2435, 0.2616)
    config.augment.pad_crop = 4
    config.augment.flip = "horizontal"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_rules = ()
    config.schedule.name = "multi_step"
    config.schedule.unit = "steps"
    config.schedule.milestones = (32_000.0, 48_000.0)
    # The papers start with about 400 steps at learning rate 0.01. Here, the learning rate rises linearly from 0.01
    # to 0.1 in the first 400 steps.
    if network in WARMED_UP:
        config.schedule.warmup = 400.0
        config.schedule.warmup_from = 0.1
    config.train.batch_size = 128
    config.train.epochs = 164
    config.train.eval_batch_size = 1000
    config.train.checkpoint_every = 5.0
    return config
