"""ResNets on ImageNet-1k in few epochs, trained as in FFCV. The argument after the colon is NETWORK_EPOCHS.

python -m flax_resnet.main --config configs/ffcv.py:resnet50_16 --workdir runs/resnet50_16

Expected: top-1 in %, for each number of epochs (published by FFCV; not yet run here)
    epochs    16      24      32      40      56      88
    resnet18  66.9    68.8    70.0    70.6    71.3    72.4
    resnet50  73.8    75.6    76.6    77.2    78.0    78.4
Source: ffcv-imagenet, rn18_configs and rn50_configs. The learning rate rises and falls linearly. Training
images have 160 px, and 192 px in the last quarter. Evaluation uses 256 px and horizontal flips. FFCV blurs before
each strided convolution; this package blurs after it.
Cost: 312 steps of 4,096 images per epoch (resnet18: 1,251 steps of 1,024). Needs
`python -m flax_resnet prepare --name=imagenet2012`; add --pack for faster input.
"""

from flax_resnet.config import default_config
from flax_resnet.errors import ConfigError

# {number of epochs: first epoch with 192 px images}
GROWS = {16: 12, 24: 19, 32: 25, 40: 32, 56: 45, 88: 71}
RUNS = tuple(f"{name}_{epochs}" for name in ("resnet18", "resnet50") for epochs in GROWS)


def get_config(run: str = "resnet50_16"):
    """Return the configuration of one of the runs."""
    if run not in RUNS:
        raise ConfigError(key="configs/ffcv.py", value=run, allowed=RUNS)
    name, epochs = run.split("_")
    config = default_config()
    config.model.name = name
    config.model.anti_alias = "blur"
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.train_crop = "random_resized"
    config.data.image_size = 192
    config.data.progressive = ((0.0, 160), (float(GROWS[int(epochs)]), 192))
    config.data.eval_crop = "center"
    config.data.eval_size = 256
    config.augment.flip = "horizontal"
    config.augment.eval_flip = True
    config.loss.label_smoothing = 0.1
    config.optimizer.learning_rate = 1.7
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_rules = ((r"bn\d/", 0.0),)
    config.schedule.name = "linear"
    config.schedule.warmup = 2.0
    config.schedule.warmup_from = 1e-4
    config.train.batch_size = 4096
    config.train.epochs = int(epochs)
    if name == "resnet18":
        config.optimizer.learning_rate = 0.5
        config.optimizer.weight_decay = 5e-5
        config.train.batch_size = 1024
    return config
