"""Networks on ImageNet-1k, trained like torchvision's V1 weights. The argument after the colon is the network.

python -m flax_resnet.main --config configs/torchvision_v1.py:resnet50 --workdir runs/resnet50

Expected: top-1 after 90 epochs (published: torchvision, the IMAGENET1K_V1 weights; not yet run here)
    resnet34 73.31 %, resnet50 76.13 %, resnet101 77.37 %, resnet152 78.31 %
    baselines: alexnet 56.52 %, vgg16_bn 73.36 %
    For resnet18, use configs/resnet18.py:imagenet2012.
Source: torchvision references/classification, its defaults; He et al. 2016, "Deep residual learning", section 3.4.
Cost: 450,360 steps of 256 images. Needs `python -m flax_resnet prepare --name=imagenet2012`.
"""

from flax_resnet.config import default_config
from flax_resnet.errors import ConfigError

# {network: learning rate}
NETWORKS = {
    "resnet34": 0.1,
    "resnet50": 0.1,
    "resnet101": 0.1,
    "resnet152": 0.1,
    "alexnet": 0.01,
    "vgg16_bn": 0.01,
}


def get_config(network: str = "resnet50"):
    """Return the configuration for one of the networks."""
    if network not in NETWORKS:
        raise ConfigError(key="configs/torchvision_v1.py", value=network, allowed=NETWORKS)
    config = default_config()
    config.model.name = network
    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.train_crop = "random_resized"
    config.data.eval_crop = "center"
    config.augment.flip = "horizontal"
    config.optimizer.learning_rate = NETWORKS[network]
    config.optimizer.weight_decay = 1e-4
    config.optimizer.weight_decay_rules = ()
    config.schedule.name = "multi_step"
    config.schedule.milestones = (30.0, 60.0)
    config.train.batch_size = 256
    config.train.epochs = 90
    config.train.log_every = 100
    return config
