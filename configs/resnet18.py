"""ResNet-18. The argument after the colon is the dataset.

python -m flax_resnet.main --config configs/resnet18.py --workdir /tmp/run
    The embedded digits: 1,437 training and 360 test images; no download needed. Expected: 98.3 % top-1 after
    8 epochs (final checkpoint; median of seeds 0 to 4, which span 97.8 to 98.9 %), in 40-90 s on two CPU cores.

python -m flax_resnet.main --config configs/resnet18.py:cifar10 --workdir /tmp/cifar10
    CIFAR-10, 3x3 stem, 200 epochs. Expected: about 95 % top-1 (published: 95.47 % for this network and recipe,
    github.com/kuangliu/pytorch-cifar); not yet run here in full. Needs
    `python -m flax_resnet prepare --name=cifar10`.

python -m flax_resnet.main --config configs/resnet18.py:imagenet2012 --workdir /tmp/imagenet
    ImageNet-1k, torchvision's V1 recipe, 90 epochs. Expected: 69.76 % top-1 (torchvision's published
    weights, ResNet18_Weights.IMAGENET1K_V1); not yet run here. Needs the archives ILSVRC2012_img_train.tar and
    ILSVRC2012_img_val.tar, and `python -m flax_resnet prepare --name=imagenet2012`.

python -m flax_resnet.main --config configs/resnet18.py:folder=/path/to/images --workdir /tmp/mine
    Your own images: /path/train/CLASS/*.jpg beside val/ or test/, or /path/CLASS/*.jpg. Or use csv=/path/table.csv
    for a table of path and label, or tfds=NAME for a TFDS dataset of photographs. Images are 64 px unless
    --config.data.image_size is set.
"""

from flax_resnet.config import default_config
from flax_resnet.data.named import dataset_settings


def get_config(dataset: str = "digits"):
    """Return the configuration for digits, cifar10, imagenet2012, or SOURCE=DATASET."""
    config = default_config()
    config.model.name = "resnet18"
    if dataset in RECIPES:
        config.data.name = dataset
        RECIPES[dataset](config)
    else:
        config.data.update(dataset_settings(dataset, key="configs/resnet18.py", others=RECIPES))
        photographs(config)
    return config


def digits(config):
    """Set up the 8x8 grey digits.

    The digits are not augmented: they fill their images to the edge, so shifts would reduce the accuracy.
    """
    config.model.stem = "cifar"
    # Measured on the 1,437 training images.
    config.augment.mean = (0.305, 0.305, 0.305)
    config.augment.std = (0.376, 0.376, 0.376)
    config.train.batch_size = 64
    config.train.epochs = 8
    config.train.eval_batch_size = 360
    config.optimizer.learning_rate = 0.05
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    # One of the eight epochs. As a share of the run, so that a run of one epoch has a warm-up too.
    config.schedule.unit = "fraction"
    config.schedule.warmup = 1 / 8


def cifar10(config):
    """Set up CIFAR-10.

    Source: He et al. 2016, section 4.2, for the augmentation; pytorch-cifar for the schedule.
    """
    config.model.stem = "cifar"
    config.data.image_size = 32
    config.augment.mean = (0.4914, 0.4822, 0.4465)
    config.augment.std = (0.2470, 0.2435, 0.2616)
    config.augment.pad_crop = 4
    config.augment.flip = "horizontal"
    config.train.batch_size = 128
    config.train.epochs = 200
    config.train.eval_batch_size = 1000
    config.train.checkpoint_every = 5.0
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.weight_decay_rules = ()


def imagenet2012(config):
    """Set up ImageNet-1k.

    Source: torchvision references/classification, its defaults: SGD with learning rate 0.1, a drop every 30 epochs,
    weight decay on all parameters.
    """
    config.data.image_size = 224
    config.data.eval_split = "validation"
    config.data.train_crop = "random_resized"
    config.data.eval_crop = "center"
    config.augment.flip = "horizontal"
    config.train.batch_size = 256
    config.train.epochs = 90
    config.train.log_every = 100
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_rules = ()
    config.schedule.name = "multi_step"
    config.schedule.milestones = (30.0, 60.0)


def photographs(config):
    """Set up photographs: random resized crops and flips for training, centre crops for evaluation."""
    config.data.image_size = 64
    config.data.train_crop = "random_resized"
    config.data.crop_area = (0.25, 1.0)
    config.data.eval_crop = "center"
    config.augment.flip = "horizontal"
    config.train.batch_size = 32
    config.train.epochs = 30
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.schedule.unit = "fraction"
    config.schedule.warmup = 1 / 15


RECIPES = {
    "digits": digits,
    "cifar10": cifar10,
    "imagenet2012": imagenet2012,
}
