"""What is known of pretrained weights: by name, from a config of the hub, and the classes of ImageNet."""

import pytest
from conftest import refused
from hub_config import CONFIG

from flax_resnet.errors import WeightsError
from flax_resnet.weights import find, from_config, imagenet_classes
from flax_resnet.weights.catalog import all_pretrained


def test_weights_are_found_by_name():
    found = find("resnet50.a1_in1k")
    assert found == find("resnet50")  # the default of timm
    assert found.name == "resnet50.a1_in1k"
    assert (found.num_classes, found.image_size, found.crop_fraction) == (1000, 224, 0.95)
    assert (found.interpolation, found.test_image_size) == ("bicubic", 288)
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.std == (0.229, 0.224, 0.225)
    bit = find("resnetv2_50x1_bit.goog_in21k")
    assert (bit.num_classes, bit.mean, bit.test_image_size) == (21843, (0.5, 0.5, 0.5), 224)
    assert find("resnet50.tv_in1k").interpolation == "bilinear"


def test_of_an_unknown_name_the_nearest_is_shown():
    with refused("name", "resnet50.a1_in2k", WeightsError) as caught:
        find("resnet50.a1_in2k")
    assert "'a1_in1k'" in caught.value.cure
    assert "a1_in1k, a1h_in1k" in caught.value.allowed  # and all others
    with refused("name", "resnet50.zzz", WeightsError) as caught:
        find("resnet50.zzz")
    assert caught.value.cure == ""
    with refused("name", "resnet05.a1_in1k", WeightsError) as caught:
        find("resnet05.a1_in1k")
    assert "'resnet50'" in caught.value.cure
    assert caught.value.allowed == ""
    with refused("name", "xyz", WeightsError) as caught:
        find("xyz")
    assert "a file" in caught.value.cure


def test_the_table_is_whole():
    table = all_pretrained()
    rows = [row for tags in table.values() for row in tags.values()]
    assert (len(table), len(rows)) == (78, 174)
    for row in rows:
        assert row.interpolation in ("bilinear", "bicubic")
        assert 0 < row.crop_fraction <= 1
        assert 0 < row.test_crop_fraction <= 1
        assert 128 <= row.image_size <= row.test_image_size <= 512
        assert len(row.mean) == len(row.std) == 3


def test_a_config_of_the_hub_is_read():
    read = from_config({**CONFIG, "label_names": ["a", "b", "c"]})
    assert read.name == "resnet18.a1_in1k"
    assert (read.num_classes, read.class_names) == (3, ("a", "b", "c"))
    assert (read.image_size, read.test_image_size) == (224, 288)
    assert (read.crop_fraction, read.test_crop_fraction) == (0.95, 0.95)
    assert (read.mean, read.std) == ((0.5,) * 3, (0.25,) * 3)
    flat = {"architecture": "resnet18", **CONFIG["pretrained_cfg"]}
    assert from_config(flat) == read._replace(num_classes=1000, class_names=())


def test_what_is_empty_in_a_config_counts_as_missing():
    empty = {"tag": None, "test_input_size": None, "test_crop_pct": None, "label_names": []}
    read = from_config({**CONFIG, **empty, "labels": ["a", "b", "c"]})
    assert (read.tag, read.class_names) == ("", ("a", "b", "c"))
    assert (read.test_image_size, read.test_crop_fraction) == (224, 0.95)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", 3),
        ("mean", [0.5, 0.5]),
        ("std", [0.5, 0.0, 0.5]),
        ("crop_pct", 0),
        ("crop_pct", 1.01),
        ("test_crop_pct", float("inf")),
        ("input_size", [3, 224, 192]),
        ("input_size", None),
        ("test_input_size", [288]),
        ("interpolation", "bicubik"),
        ("crop_mode", "border"),
        ("options", [1]),
        ("label_names", 3),
        ("num_classes", "many"),
        ("num_classes", float("inf")),
        ("pretrained_cfg", None),
    ],
)
def test_a_wrong_entry_of_a_config_is_refused(key, value):
    config = {**CONFIG["pretrained_cfg"], **CONFIG, key: value}
    with refused(key, value, WeightsError) as caught:
        from_config(config)
    assert caught.value.allowed
    if key != "pretrained_cfg":  # the same one level below
        inner = {**CONFIG["pretrained_cfg"], key: value}
        with refused(key, value, WeightsError):
            from_config({"architecture": "resnet18", "pretrained_cfg": inner})


@pytest.mark.parametrize("key", ["input_size", "crop_pct", "architecture", "num_classes", "std"])
def test_a_missing_entry_of_a_config_is_refused(key):
    config = {**CONFIG["pretrained_cfg"], "architecture": "resnet18"}
    from_config(config)
    del config[key]
    with refused(key, ..., WeightsError) as caught:
        from_config(config)
    assert caught.value.value is ...


def test_imagenet_classes_are_in_the_usual_order():
    wnids, names = imagenet_classes()
    assert len(wnids) == len(names) == len(set(wnids)) == 1000
    assert list(wnids) == sorted(wnids)
    assert (wnids[0], names[0], names[207], names[999]) == (
        "n01440764",
        "tench",
        "golden retriever",
        "toilet tissue",
    )
