"""What is known of pretrained weights: by name, from a config of the hub, and the classes of ImageNet."""

import pytest
from hub_config import CONFIG

from flax_resnet.errors import WeightsError
from flax_resnet.weights import find, from_config, imagenet_classes


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
    with pytest.raises(WeightsError, match=r"did you mean 'a1_in1k'.*allowed: a1_in1k, a1h_in1k"):
        find("resnet50.a1_in2k")
    with pytest.raises(WeightsError, match=r"'resnet05' on the hub: did you mean 'resnet50'"):
        find("resnet05.a1_in1k")


def test_the_table_is_whole():
    from flax_resnet.weights.catalog import _pretrained

    table = _pretrained()
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
    for key, value, says in [
        ("mean", 3, "config.json of the weights: "),
        ("crop_pct", 0, "must be above zero"),
        ("input_size", [3, 224, 192], "must be square"),
        ("input_size", None, "config.json of the weights: "),
    ]:
        with pytest.raises(WeightsError, match=says):
            from_config({**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], key: value}})
    with pytest.raises(WeightsError, match="has no 'input_size'"):
        from_config({})
    with pytest.raises(WeightsError, match=r"config\.json"):
        from_config({**CONFIG, "pretrained_cfg": None})


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
