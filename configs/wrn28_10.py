"""Wide ResNet-28-10 on CIFAR-10.

python -m flax_resnet.main --config configs/wrn28_10.py --workdir runs/wrn28_10

Expected: 4.00 % error (96.00 % top-1; published, without dropout); not yet run here.
Source: Zagoruyko and Komodakis 2016, "Wide residual networks", section 3.
Cost: 78,000 steps of 128 images, 36.5 million parameters. Needs `python -m flax_resnet prepare --name=cifar10`.
"""

from flax_resnet.config import default_config


def get_config():
    """Return the configuration."""
    config = default_config()
    config.model.name = "wrn28_10"
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.augment.mean = (0.4914, 0.4822, 0.4465)
    config.augment.std = (0.2470, 0.2435, 0.2616)
    config.augment.pad_crop = 4
    config.augment.pad_crop_fill = "reflect"
    config.augment.flip = "horizontal"
    config.optimizer.learning_rate = 0.1
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.optimizer.weight_decay_rules = ()
    config.schedule.name = "multi_step"
    config.schedule.milestones = (60.0, 120.0, 160.0)
    config.schedule.gamma = 0.2
    config.train.batch_size = 128
    config.train.epochs = 200
    config.train.eval_batch_size = 1000
    config.train.checkpoint_every = 5.0
    return config
