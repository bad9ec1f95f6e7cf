"""Fine-tune BiT's R50x1 with the settings of BiT-HyperRule. The argument after the colon is SIZE,DATASET.

python -m flax_resnet.main --config configs/bit_finetune.py:small,folder=/data/flowers --workdir /tmp/flowers
    SIZE: small for fewer than 20,000 images, medium for fewer than 500,000, large for more.
    DATASET: folder=/path, csv=/path or tfds=NAME, as in configs/finetune.py.
    With fewer than 512 images, set a smaller --config.train.batch_size.
    With images of at most 96 px, set --config.data.image_size=128.

Expected: depends on the images; not yet run here.
Source: Kolesnikov et al. 2020, "Big Transfer", section 3.3.
Cost: 500, 10,000 or 20,000 steps of 512 images of 480 px. Needs BiT's weights from the Hugging Face hub.
"""

from flax_resnet.config import default_config
from flax_resnet.data.named import dataset_settings
from flax_resnet.errors import ConfigError

STEPS = {"small": 500, "medium": 10_000, "large": 20_000}


def get_config(task: str = ""):
    """Return the configuration for a size and a dataset, such as "small,folder=/path"."""
    size, _, dataset = task.partition(",")
    key = "configs/bit_finetune.py"
    if size not in STEPS:
        raise ConfigError(
            key=key, value=task, allowed="small, medium or large, a comma, and SOURCE=DATASET"
        )
    config = default_config()
    config.data.update(dataset_settings(dataset, key=key))
    config.model.name = "resnetv2_50x1_bit"
    config.model.pretrained = "resnetv2_50x1_bit.goog_in21k"
    config.augment.mean = (0.5, 0.5, 0.5)
    config.augment.std = (0.5, 0.5, 0.5)
    config.data.image_size = 480
    config.data.train_crop = "random_resized"
    # The paper takes a random crop of 480 px from an image resized to 512 px.
    config.data.crop_area = (0.75, 1.0)
    config.data.crop_aspect = (1.0, 1.0)
    config.data.eval_crop = "resize"
    config.augment.flip = "horizontal"
    config.augment.mixup = 0.0 if size == "small" else 0.1
    config.optimizer.learning_rate = 0.003
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "multi_step"
    config.schedule.unit = "fraction"
    config.schedule.milestones = (0.4, 0.6, 0.8) if size == "small" else (0.3, 0.6, 0.9)
    # The warmup takes 100 steps (small) or 500 steps.
    config.schedule.warmup = {"small": 0.2, "medium": 0.05, "large": 0.025}[size]
    config.train.batch_size = 512
    config.train.microbatch_size = "auto"
    config.train.steps = STEPS[size]
    # Small datasets have only a few steps per epoch.
    every = {"small": 25.0, "medium": 10.0, "large": 1.0}[size]
    config.train.eval_every = config.train.checkpoint_every = every
    return config
