"""ResNet-50 on ImageNet-1k in large batches, with LARS.

python -m flax_resnet.main --config configs/resnet50_mlperf.py --workdir runs/resnet50_mlperf

Expected: 75.9 % top-1, the target of MLPerf training, by epoch 36 (published: 75.996 %); not yet run here.
Source: MLPerf training, results v3.0, ResNet: LARS, 3,200 images per step, learning rate 11, polynomial decay of
power 2, weight decay 5e-5, label smoothing 0.1.
Cost: 14,400 steps of 3,200 images. Needs `python -m flax_resnet prepare --name=imagenet2012`.
"""

from flax_resnet.config import default_config


def get_config():
    """Return the configuration."""
    config = default_config()
    config.model.name = "resnet50"
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.train_crop = "random_resized"
    config.data.eval_crop = "center"
    config.augment.flip = "horizontal"
    config.loss.label_smoothing = 0.1
    config.optimizer.name = "lars"
    config.optimizer.learning_rate = 11.0
    config.optimizer.weight_decay = 5e-5
    config.schedule.name = "polynomial"
    config.schedule.power = 2.0
    config.schedule.warmup = 2.0
    config.train.batch_size = 3200
    config.train.epochs = 36
    config.train.eval_every = 4.0
    config.train.checkpoint_every = 4.0
    return config
