"""ResNet-50 on ImageNet-1k as torchvision trained its first weights.

python -m flax_resnet.main --config configs/resnet50.py --workdir runs/resnet50

Expected: 76.13 % top-1 after 90 epochs (published: torchvision, ResNet50_Weights.IMAGENET1K_V1); not yet run here.
Source: torchvision references/classification, its defaults; He et al. 2016, "Deep residual learning", section 3.4.
Cost: 450,360 steps of 256 images. Needs `python -m flax_resnet.prepare --name=imagenet2012`.
"""

from flax_resnet.config import default_config


def get_config():
    """Returns the configuration."""
    config = default_config()
    config.model.name = "resnet50"
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.train_crop = "random_resized"
    config.data.eval_crop = "center"
    config.augment.flip = True
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_rules = ()
    config.schedule.name = "multi_step"
    config.schedule.milestones = (30.0, 60.0)
    config.train.batch_size = 256
    config.train.epochs = 90
    config.train.log_every = 100
    return config
