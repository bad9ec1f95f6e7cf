"""ResNet-20 on CIFAR-10, distilled from ResNet-56 and trained on the labels.

python -m flax_resnet.main --config configs/cifar_he2016.py:resnet56 --workdir runs/resnet56
python -m flax_resnet.main --config configs/distill.py --workdir runs/resnet20_distilled \\
    --config.distill.teacher=runs/resnet56

Expected: a test error below 8.75 %, the published error of resnet20 without a teacher; not yet run here.
Source: Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2. Here, the temperature is 4,
and the loss on the labels has weight 0.1. All other settings are those of configs/cifar_he2016.py.
Cost: 64,000 steps of 128 images. Needs `python -m flax_resnet prepare --name=cifar10`.
"""

from flax_resnet.config import default_config


def get_config():
    """Return the configuration."""
    config = default_config()
    config.model.name = "resnet20"
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.augment.mean = (0.4914, 0.4822, 0.4465)
    config.augment.std = (0.2470, 0.2435, 0.2616)
    config.augment.pad_crop = 4
    config.augment.flip = "horizontal"
    config.distill.teacher = "runs/resnet56"
    config.distill.temperature = 4.0
    config.distill.weight = 0.9
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
