"""Fine-tune a pretrained network on your own images. The argument after the colon is the dataset.

python -m flax_resnet.main --config configs/finetune.py:folder=/data/flowers --workdir /tmp/flowers \\
    --config.model.pretrained=resnet50.a1_in1k

Datasets:
    folder=/data/flowers    /data/flowers/train/CLASS/*.jpg beside test/ or val/, or /data/flowers/CLASS/*.jpg
    csv=/data/table.csv     a table of path and label
    tfds=NAME               a TFDS dataset

model.pretrained names timm's weights, a run folder of this package, or a weights file. A weights file also needs
--config.model.name, unless a JSON file beside it names the network (`convert` writes such a file). The network, the
image size and the normalisation come from the weights. The head is newly initialized.

Expected: depends on the images. We fine-tuned a resnet20, pretrained on five classes of CIFAR-10, on the other five
    with 50 images each: 66.1 % top-1, and 59.5 % from scratch (five seeds; docs/results.md). We have not yet run
    this recipe on photographs.
Source: Howard and Ruder 2018, "Universal language model fine-tuning for text classification", section 3.3: train
the head first, then all layers, with lower learning rates for lower layers. Kolesnikov et al. 2020, "Big Transfer",
section 3.3: a short schedule with little regularisation.
Cost: 20 epochs. For tiny datasets, --config.model.norm=frozen keeps the batch statistics of the weights.
"""

from flax_resnet.config import default_config
from flax_resnet.data.named import dataset_settings


def get_config(dataset: str = "folder="):
    """Return the configuration for SOURCE=DATASET."""
    config = default_config()
    config.data.update(dataset_settings(dataset, key="configs/finetune.py"))
    # Empty settings are taken from the pretrained weights.
    config.model.name = ""
    config.data.image_size = 0
    config.augment.mean = ()
    config.augment.std = ()
    config.data.train_crop = "random_resized"
    config.data.crop_area = (0.25, 1.0)
    config.data.eval_crop = "center"
    config.augment.flip = "horizontal"
    config.optimizer.learning_rate = 0.01
    config.optimizer.nesterov = True
    config.optimizer.layer_decay = 0.9
    # Train only the new head for the first tenth of the run, 2 epochs, then all layers.
    config.schedule.unit = "fraction"
    config.optimizer.unfreeze_at = ((r"^(?!(fc|classifier_6)/)", 0.1),)
    config.schedule.warmup = 1 / 20
    config.train.batch_size = 32
    config.train.epochs = 20
    return config
