"""A config.json as timm's repositories on the hub have it."""

CONFIG = {
    "architecture": "resnet18",
    "num_classes": 3,
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "num_classes": 1000,
    },
}
