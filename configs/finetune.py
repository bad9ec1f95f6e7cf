"""Fine-tuning: a network that has learned elsewhere, on one's own images.

python -m flax_resnet.main --config configs/finetune.py:folder=/data/flowers --workdir /tmp/flowers \\
    --config.model.pretrained=resnet50.a1_in1k
    /data/flowers/train/CLASS/*.jpg beside test/ or val/, or /data/flowers/CLASS/*.jpg; csv=/data/table.csv for a
    table of path and label, tfds=NAME for a TFDS dataset.

model.pretrained is a name of timm's weights, a run folder of this package, or a file of weights (which needs
--config.model.name, unless a JSON file lies beside it, as convert writes one, that says whose they are). Network,
image size and normalisation are those of the weights; the head is new.

Expected: depends on the images. Five classes of CIFAR-10, 50 images each, from a resnet20 that had learned the five
others: 66.1 %, and 59.5 from scratch (five seeds; docs/results.md). No photographs were yet run here.
Source: two stages, the head first, then all, Howard and Ruder 2018, "Universal language model fine-tuning for text
classification", section 3.3; lower rates for lower layers, ibid.; a short schedule with little regularisation,
Kolesnikov et al. 2020, "Big Transfer", section 3.3.
Cost: 20 epochs. For a network that must keep its batch statistics (tiny sets): --config.model.norm=frozen.
"""

from flax_resnet.config import default_config
from flax_resnet.errors import ConfigError


def get_config(dataset: str = "folder="):
    """Returns the configuration for folder=/path, csv=/path or tfds=NAME."""
    source, _, place = dataset.partition("=")
    if source not in ("folder", "csv", "tfds") or not place:
        raise ConfigError(
            f"configs/finetune.py:{dataset}: must be folder=/path, csv=/path or tfds=NAME"
        )
    config = default_config()
    config.data.source = source
    if source == "tfds":
        config.data.name = place
    else:
        config.data.path = place
    config.model.name = ""  # this, and what else is empty here, is that of the weights
    config.data.image_size = 0
    config.augment.mean = ()
    config.augment.std = ()
    config.data.train_crop = "random_resized"
    config.data.crop_area = (0.25, 1.0)
    config.data.eval_crop = "center"
    config.augment.flip = True
    config.optimizer.learning_rate = 0.01
    config.optimizer.nesterov = True
    config.optimizer.layer_decay = 0.9
    config.optimizer.unfreeze_at = (
        (r"^(?!(fc|classifier_6)/)", 2.0),
    )  # all but the head, which is new
    config.schedule.warmup = 1.0
    config.train.batch_size = 32
    config.train.epochs = 20
    return config
