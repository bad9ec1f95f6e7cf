"""BiT's R50x1 on ImageNet-1k, distilled from R152x2 without labels (function matching).

python -m flax_resnet.main --config configs/resnet50_funmatch.py --workdir runs/funmatch

Expected: 82.82 % top-1 (published: timm, resnetv2_50x1_bit.goog_distilled_in1k); not yet run here.
Source: Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent", section 4, and its
configuration bit_i1k.py in big_vision. Teacher and student see the same crop and the same mixup. big_vision's
weight decay of 3e-4 is not multiplied by the learning rate. Here, the weight decay is multiplied by the learning
rate, and 0.01 x 0.03 = 3e-4.
Cost: 375,600 steps of 4,096 images, each with the teacher's forward pass. Needs the teacher's weights (from the
Hugging Face hub) and `python -m flax_resnet prepare --name=imagenet2012`.
"""

from flax_resnet.config import default_config


def get_config():
    """Return the configuration."""
    config = default_config()
    config.model.name = "resnetv2_50x1_bit"
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.train_crop = "random_resized"
    config.data.crop_area = (0.05, 1.0)
    config.data.eval_crop = "center"
    config.augment.mean = (0.5, 0.5, 0.5)
    config.augment.std = (0.5, 0.5, 0.5)
    config.augment.flip = "horizontal"
    config.augment.mixup = 1.0
    config.distill.teacher = "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.03
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.schedule.unit = "steps"
    config.schedule.warmup = 5000.0
    config.train.batch_size = 4096
    config.train.epochs = 1200
    config.train.eval_every = 10.0
    config.train.checkpoint_every = 10.0
    config.train.log_every = 100
    return config
