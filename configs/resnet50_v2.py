"""ResNet-50 on ImageNet-1k, trained like torchvision's V2 weights.

python -m flax_resnet.main --config configs/resnet50_v2.py --workdir runs/resnet50_v2

Expected: 80.86 % top-1 (published: torchvision, ResNet50_Weights.IMAGENET1K_V2); not yet run here.
Source: torchvision references/classification, "new recipe": 600 epochs at 176 px, evaluated at 224 px. torchvision
updates the moving average every 32 steps. Here, each step makes 1/32 of that update.
Cost: 750,600 steps of 1,024 images. Needs `python -m flax_resnet prepare --name=imagenet2012`.
"""

from flax_resnet.config import default_config


def get_config():
    """Return the configuration."""
    config = default_config()
    config.model.name = "resnet50"
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 176
    config.data.eval_size = 224
    config.data.train_crop = "random_resized"
    config.data.eval_crop = "center"
    config.data.eval_crop_fraction = 0.965  # 224 / 232
    config.data.augmentation_repeats = 4
    config.augment.flip = "horizontal"
    config.augment.policy = "trivialaugment"
    config.augment.random_erasing = 0.1
    config.augment.mixup = 0.2
    config.augment.cutmix = 1.0
    config.loss.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.5
    config.optimizer.weight_decay = 2e-5
    # No weight decay for normalisation layers.
    config.optimizer.weight_decay_rules = ((r"(bn\d|downsample_1)/", 0.0),)
    config.schedule.warmup = 5.0
    config.schedule.warmup_from = 0.01
    # torchvision's decay for 32 steps is 1 - 2e-5 x 1024 x 32 / 600. This is the decay for one step.
    config.ema.decay = 0.999966
    config.ema.warmup = False
    config.train.batch_size = 1024
    config.train.epochs = 600
    config.train.log_every = 100
    return config
