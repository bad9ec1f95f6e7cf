"""`pack_image`: EXIF orientation, resizing, 16-bit images and truncated images."""

import io

import numpy as np
import pytest
from packed_dataset import decoded
from PIL import Image

from flax_resnet.data.packing.jpeg import pack_image


def test_pack_image_turns_only_if_upright_and_reduces_16_bits_to_8():
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "blue").save(buffer, "JPEG", exif=exif)
    options = {"max_side": 100, "quality": 95}
    published = pack_image(buffer.getvalue(), upright=False, **options)
    assert (published.encoded, published.how) == (buffer.getvalue(), "kept")
    turned = decoded(pack_image(buffer.getvalue(), upright=True, **options).encoded)
    assert turned.shape == (40, 20, 3)
    smaller = pack_image(buffer.getvalue(), max_side=10, quality=95, upright=False)
    assert decoded(smaller.encoded).shape == (5, 10, 3)
    deep = io.BytesIO()
    Image.fromarray(np.full((20, 20), 100 * 256 + 7, np.uint16)).save(deep, "PNG")
    np.testing.assert_allclose(
        decoded(pack_image(deep.getvalue(), upright=True, **options).encoded), 100, atol=1
    )


def test_truncated_images_are_refused():
    buffer = io.BytesIO()
    Image.effect_noise((60, 40), 50).save(buffer, "JPEG")
    for encoded in (buffer.getvalue()[:-300], buffer.getvalue()[:100], b""):
        with pytest.raises(ValueError, match=r"(?i)truncated|not an image"):
            pack_image(encoded, max_side=100, quality=90, upright=True)
