"""ResNet-RS-50 on ImageNet-1k.

python -m flax_resnet.main --config configs/resnet_rs50.py --workdir runs/resnet_rs50

Expected: 79.93 % top-1 at 224 px (published: timm, resnetrs50.tf_in1k); not yet run here.
Source: Bello et al. 2021, "Revisiting ResNets: improved training and scaling strategies", section 7, appendix.
The source's RandAugment is TensorFlow's, with 2 operations of magnitude 10; here it is torchvision's, with
magnitude 30 of 30.
Cost: 109,200 steps of 4,096 images. Needs `python -m flax_resnet prepare --name=imagenet2012`.
"""

from flax_resnet.config import default_config


def get_config():
    """Return the configuration."""
    config = default_config()
    config.model.name = "resnetrs50"
    config.model.dropout = 0.25
    config.model.norm_momentum = 0.01
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 160
    config.data.eval_size = 224
    config.data.train_crop = "random_resized"
    config.data.eval_crop = "center"
    config.data.eval_crop_fraction = 0.91
    config.data.interpolation = "bicubic"
    config.augment.flip = "horizontal"
    config.augment.policy = "randaugment"
    config.augment.policy_magnitude = 30
    config.loss.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 4e-5
    config.schedule.warmup = 5.0
    config.schedule.batch_scaling = "linear"
    config.ema.decay = 0.9999
    config.train.batch_size = 4096
    config.train.epochs = 350
    config.train.log_every = 100
    return config
