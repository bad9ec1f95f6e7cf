"""Pre-activation ResNet-164 on CIFAR-10, as its paper trained it.

python -m flax_resnet.main --config configs/preact164.py --workdir runs/preact164

Expected: 5.46 % error (94.54 % top-1) (published); not yet run here in full.
Source: He et al. 2016, "Identity mappings in deep residual networks", appendix.
Cost: 64,000 steps of 128 images. Needs `python -m flax_resnet.prepare --name=cifar10`.
"""

from flax_resnet.config import default_config


def get_config():
    """Returns the configuration. 164 epochs of 390 steps are the paper's 64,000 steps, less 40."""
    config = default_config()
    config.model.name = "preact164"
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
    config.schedule.warmup = 400.0  # the paper: 0.01 for the first 400 steps
    config.schedule.warmup_from = 0.1
    config.train.batch_size = 128
    config.train.epochs = 164
    config.train.eval_batch_size = 1000
    config.train.checkpoint_every = 5.0
    return config
