"""The config.json of a repository: of timm, of transformers, or of this package, as a `Pretrained`."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from flax_resnet.errors import WeightsError
from flax_resnet.weights.catalog import Pretrained, all_pretrained, from_config

# torchvision's preprocessing, used for weights with unknown preprocessing.
USUAL = Pretrained(
    "", "", 1000, 224, 0.875, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, 0.875
)
# The key of this package that names the network in place of timm's "architecture": timm refuses such a file,
# instead of reading the weights into another network.
OWN_NETWORK = "flax_resnet_network"

# timm's names of our options. Our `in_channels` comes with `input_size`.
TIMM_ARGUMENTS = {
    "depths": "layers",
    "output_stride": "output_stride",
    "global_pool": "global_pool",
}
TIMM_POOLS = ("avg", "max", "avgmax")
# Networks whose name timm has too, but whose tensors are those of torchvision.
TORCHVISION_ONLY = ("vgg", "alexnet")
# Networks of timm 1.0 for which it has no weights.
TIMM_WITHOUT_WEIGHTS = (
    *("ecaresnet200d", "ecaresnext26t_32x4d", "ecaresnext50t_32x4d", "resnet200", "resnet50t"),
    *("resnetaa34d", "resnetblur101d", "resnetblur18", "resnetblur50d", "resnetv2_101d"),
    *("resnetv2_152", "resnetv2_152d", "resnetv2_50d", "resnetv2_50d_frn", "resnetv2_50t"),
    *("seresnet101", "seresnet152", "seresnet18", "seresnet200d", "seresnet269d", "seresnet34"),
    *("seresnet50t", "seresnetaa50d"),
)
# The first convolution and the classifier as timm names them.
FIRST = ("conv1.weight", "conv1.0.weight", "stem.conv.weight", "stem.conv1.weight")
HEADS = ("fc.weight", "head.fc.weight")
# Arguments of timm that do not change the outputs for images.
HARMLESS = (
    "num_classes",
    "in_chans",
    "drop_rate",
    "drop_path_rate",
    "zero_init_last",
    "drop_block_rate",
)

# Networks of transformers: {(layer_type, depths): our name}; other depths are an option of the first of its type.
TRANSFORMERS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (2, 2, 2, 2)): "resnet26",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
BASES = {"basic": "resnet18", "bottleneck": "resnet50"}
EXPANSION = {"basic": 1, "bottleneck": 4}
USUAL_WIDTHS = (64, 128, 256, 512)
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
KNOWN = "a ResNet of timm, of transformers (ResNetForImageClassification) or of flax_resnet"


def about_of(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
) -> Pretrained:
    """Read the description of weights.

    Args:
      config: the content of config.json.
      preprocessor: the content of transformers' preprocessor_config.json, if there is one.

    Raises:
      WeightsError: the network is none that this package can have, or an entry is missing or invalid.
    """
    if OWN_NETWORK in config:
        return from_config({**config, "architecture": config[OWN_NETWORK]})
    if "architecture" in config:
        return from_config({**config, "options": _timm_options(config)})
    if config.get("model_type") == "resnet":
        return _of_transformers(config, preprocessor)
    key = "model_type" if "model_type" in config else "architecture"
    raise WeightsError(
        "the config.json of the weights describes another network",
        key=key,
        value=config.get(key),
        allowed=KNOWN,
    )


def timm_arguments(
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return timm's arguments for options of this package, and the options that timm lacks.

    Args:
      options: the options that differ from the named network.

    Returns:
      ({argument: value}, names of the options that timm does not have).
    """
    arguments, lacking = {}, []
    for key, value in options.items():
        if key == "norm" and value == "frozen":  # the same in inference
            continue
        if key not in TIMM_ARGUMENTS or (key == "global_pool" and value not in TIMM_POOLS):
            lacking.append(key)
        else:
            arguments[TIMM_ARGUMENTS[key]] = list(value) if isinstance(value, tuple) else value
    return arguments, tuple(lacking)


def in_timm(network: str) -> bool:
    """Return whether timm has a network of this name with the same tensors."""
    return not network.startswith(TORCHVISION_ONLY) and (
        network in all_pretrained() or network in TIMM_WITHOUT_WEIGHTS
    )


def timm_ends(tensors: Collection[str]) -> dict[str, str]:
    """Return the modules that timm replaces for other channels or classes: "first_conv" and "classifier".

    Args:
      tensors: the names of the tensors in timm's layout.
    """
    return {
        key: next((name.removesuffix(".weight") for name in names if name in tensors), "")
        for key, names in (("first_conv", FIRST), ("classifier", HEADS))
    }


def _timm_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return our options: those of this package, or else those that stand for timm's `model_args`."""
    if "options" in config:
        return config["options"]
    ours = {theirs: own for own, theirs in TIMM_ARGUMENTS.items()}
    arguments = config.get("model_args") or {}
    for key, value in arguments.items():
        if key not in ours and key not in HARMLESS:
            raise WeightsError(
                f"the config.json of the weights changes {key!r} of timm's network",
                key="model_args",
                value=value,
                allowed=f"one of {', '.join(ours)}",
            )
    return {ours[key]: value for key, value in arguments.items() if key in ours}


def _of_transformers(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None
) -> Pretrained:
    """Read a ResNetConfig, with the defaults of transformers, models/resnet/configuration_resnet.py."""
    kind = config.get("layer_type", "bottleneck")
    depths = _read(config, "depths", lambda value: tuple(map(int, value)), [3, 4, 6, 3])
    hidden = _read(
        config, "hidden_sizes", lambda value: tuple(map(int, value)), [256, 512, 1024, 2048]
    )
    stem = config.get("embedding_size", 64)
    if kind not in BASES:
        raise WeightsError(key="layer_type", value=kind, allowed=tuple(BASES))
    widths = tuple(size // EXPANSION[kind] for size in hidden)
    for key, value, allowed in (
        ("downsample_in_first_stage", config.get("downsample_in_first_stage", False), False),
        ("embedding_size", stem, widths[0]),
    ):
        if value != allowed:
            raise WeightsError(
                "the config.json describes a network that this package lacks",
                key=key,
                value=value,
                allowed=str(allowed),
            )
    name = TRANSFORMERS.get((kind, depths), BASES[kind])
    options: dict[str, Any] = {}
    if (kind, depths) not in TRANSFORMERS:
        options["depths"] = list(depths)
    if widths != USUAL_WIDTHS:
        options["widths"] = list(widths)
    if config.get("hidden_act", "relu") != "relu":
        options["act"] = config["hidden_act"]
    if config.get("downsample_in_bottleneck", False) and kind == "bottleneck":
        name += "_v1"  # the stride is in the first convolution
        if name not in ("resnet50_v1", "resnet101_v1", "resnet152_v1"):
            raise WeightsError(
                "this package has such networks with 50, 101 and 152 layers only",
                key="downsample_in_bottleneck",
                value=True,
            )
    labels = {} if config.get("id2label") is None else {"id2label": config["id2label"]}
    entries = {
        "architecture": name,
        "num_classes": len(config.get("id2label") or ()),
        "options": options,
        **labels,
        **_preprocessing(preprocessor),
    }
    return from_config(entries)


def _preprocessing(preprocessor: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return timm's keys for transformers' preprocessing; torchvision's preprocessing without a file."""
    values = preprocessor or {}
    squash, crop = False, USUAL.crop_fraction
    size = values.get("size", USUAL.image_size)
    named = size if isinstance(size, Mapping) else {"shortest_edge": size}
    if values.get("do_center_crop") and "crop_size" in values:
        inner = values["crop_size"]
        side = inner.get("height") if isinstance(inner, Mapping) else inner
        crop = _read({"size": named.get("shortest_edge")}, "size", lambda edge: side / edge)
    elif "shortest_edge" in named:  # ConvNextImageProcessor: from 384 pixels on, the whole image
        side = named["shortest_edge"]
        crop = values.get("crop_pct") or USUAL.crop_fraction
        squash = isinstance(side, int) and side >= 384
    else:
        side, squash = named.get("height"), named.get("height") == named.get("width")
    normalized = values.get("do_normalize", True)
    mean = values.get("image_mean", USUAL.mean) if normalized else [0.0] * 3
    std = values.get("image_std", USUAL.std) if normalized else [1.0] * 3
    return {
        "input_size": [len(mean), side, side],
        "crop_pct": 1.0 if squash else crop,
        "crop_mode": "squash" if squash else "center",
        "interpolation": _read(
            values, "resample", lambda number: RESAMPLE[number], 3 if values else 2
        ),
        "mean": mean,
        "std": std,
    }


def _read(
    values: Mapping[str, Any], key: str, convert: Callable[[Any], Any], default: Any = None
) -> Any:
    try:
        return convert(values.get(key, default))
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise WeightsError(
            "is invalid in the configuration of the weights", key=key, value=values.get(key)
        ) from error
