"""One way in: a path, bytes, a Pillow image and an array of one picture give the same pixels as training."""

import io
import struct
import threading
import warnings

import numpy as np
import pytest
from conftest import refused
from PIL import Image, PngImagePlugin

from flax_resnet.data.data_section import Data
from flax_resnet.data.decodable import decodable
from flax_resnet.data.decode import evaluation_pixels
from flax_resnet.data.images import orientation, prepare, without_pillow_warnings
from flax_resnet.errors import DataError

SIDE = 40
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo():
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg")[100 : 100 + SIDE, 200 : 200 + SIDE])


def bmp(pixels, bits, *, packing=0, masks=(), top_down=False, palette=b"", tail=b"", header=40):
    """Encode rows of packed pixels, [SIDE, bytes], as BMP."""
    rows = pixels if top_down else pixels[::-1]
    rows = (
        np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes() if packing < 1 else rows.tobytes()
    )
    fields = struct.pack(
        "<IiiHHIIiiII",
        *(header, SIDE, -SIDE if top_down else SIDE, 1, bits, packing, len(rows), 0, 0),
        *(len(palette) // 4, 0),
    )
    extra = b"".join(struct.pack("<I", mask) for mask in masks)
    fields += extra.ljust(header - 40, b"\0") if header > 40 else extra
    start = 14 + len(fields) + len(palette)
    return (
        b"BM"
        + struct.pack("<IHHI", start + len(rows), 0, 0, start)
        + fields
        + palette
        + rows
        + tail
    )


def bitmaps():
    rgb = np.asarray(photo())
    red, green, blue = np.moveaxis(rgb, 2, 0).astype(np.uint32)
    grey = np.repeat(np.arange(256, dtype=np.uint8), 4).tobytes()
    high = {"header": 124, "packing": 3}

    def packed(*shifts):
        shifted = [c << s for c, s in zip((red, green, blue), shifts, strict=True)]
        return (sum(shifted) | np.uint32(0xFF << (48 - sum(shifts)))).astype("<u4").view(np.uint8)

    def masks(*shifts):
        return [0xFF << s for s in shifts] + [0xFF << (48 - sum(shifts))]

    small = ((red >> 3 << 11) | (green >> 2 << 5) | blue >> 3).astype("<u2").view(np.uint8)
    runs = b"".join(
        b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in rgb[::-1, :, 1]
    )
    return {
        "bmp top down": bmp(rgb[..., ::-1].reshape(SIDE, -1), 24, top_down=True),
        "bmp and more bytes": bmp(rgb[..., ::-1].reshape(SIDE, -1), 24, tail=b"more" * 9),
        "bmp RGBA": bmp(packed(0, 8, 16), 32, masks=masks(0, 8, 16), **high),
        "bmp BGRA": bmp(packed(16, 8, 0), 32, masks=masks(16, 8, 0), **high),
        "bmp ABGR": bmp(packed(24, 16, 8), 32, masks=masks(24, 16, 8), **high),
        "bmp 565": bmp(small, 16, packing=3, masks=(0xF800, 0x7E0, 0x1F)),
        "bmp 8 bits": bmp(rgb[..., 1], 8, palette=grey),
        "bmp RLE": bmp(np.frombuffer(runs, np.uint8)[None], 8, packing=1, palette=grey),
    }


def deep_png():
    """A PNG of 16 bits and 3 channels, which Pillow cannot write."""
    import tensorflow as tf

    return tf.io.encode_png(tf.constant(np.asarray(photo()).astype(np.uint16) * 257)).numpy()


def interlaced_png():
    """An interlaced PNG: only the first pass of Adam7 holds pixels, because the image is 1 pixel high and wide."""
    import zlib

    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 1)),
        (b"IDAT", zlib.compress(b"\0\xff\x80\x40")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def with_adobe_transform(jpeg, number):
    """Return a JPEG of four channels with another colour transform in its Adobe segment: 2 is YCCK."""
    at = jpeg.index(b"Adobe")
    return jpeg[: at + 11] + bytes([number]) + jpeg[at + 12 :]


def zoo():
    """Return {name: encoded image} of odd files."""
    image = photo()
    clear = image.copy()
    clear.putalpha(Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8), (SIDE, 1))))
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [image.rotate(90), image.rotate(180)]}
    cmyk = encoded(image.convert("CMYK"), "JPEG")
    broken = encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffnonsense")
    turned = Image.Exif()
    turned[0x0112] = 77
    files = {
        "jpeg": encoded(image, "JPEG"),
        "jpeg progressive": encoded(image, "JPEG", progressive=True),
        "jpeg grey": encoded(image.convert("L"), "JPEG"),
        "jpeg CMYK": cmyk,
        "jpeg YCCK": with_adobe_transform(cmyk, 2),
        "jpeg broken EXIF": broken,
        "jpeg EXIF orientation 77": encoded(image, "JPEG", exif=turned),
        "jpeg and more bytes": encoded(image, "JPEG") + b"trailer",
        "png 1": encoded(image.convert("1"), "PNG"),
        "png L": encoded(image.convert("L"), "PNG"),
        "png L transparent": encoded(image.convert("L"), "PNG", transparency=90),
        "png LA": encoded(clear.convert("LA"), "PNG"),
        "png P": encoded(palette, "PNG"),
        "png P 2 bits": encoded(image.quantize(4), "PNG", bits=2),
        "png P transparent": encoded(palette, "PNG", transparency=bytes(range(200))),
        "png RGB": encoded(image, "PNG"),
        "png RGB transparent": encoded(image, "PNG", transparency=(9, 9, 9)),
        "png RGBA": encoded(clear, "PNG"),
        "png I;16": encoded(deep, "PNG"),
        "png RGB 16 bits": deep_png(),
        "png interlaced": interlaced_png(),
        "png frames": encoded(image, "PNG", **frames),
        "png 1x1": encoded(image.crop((0, 0, 1, 1)), "PNG"),
        "png wide": encoded(image.resize((12000, 4)), "PNG"),
        "png high": encoded(image.resize((4, 12000)), "PNG"),
        "jpeg 1x1": encoded(image.crop((0, 0, 1, 1)), "JPEG"),
        "jpeg wide": encoded(image.resize((12000, 4)), "JPEG"),
        "gif": encoded(palette, "GIF"),
        "gif transparent": encoded(palette, "GIF", transparency=5),
        "gif frames": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
        "webp": encoded(image, "WEBP"),
        "webp alpha": encoded(clear, "WEBP"),
        "webp frames": encoded(image, "WEBP", **frames),
        "tiff CMYK": encoded(image.convert("CMYK"), "TIFF"),
        "tiff I;16": encoded(deep, "TIFF"),
        **bitmaps(),
    }
    for number in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = number
        tall = image.crop((0, 0, SIDE, 25))
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            files[f"{kind.lower()} EXIF {number}"] = encoded(tall, kind, exif=exif)
        for kind in ("JPEG", "WEBP"):
            files[f"{kind.lower()} XMP {number}"] = encoded(tall, kind, xmp=XMP % number)
        notes = PngImagePlugin.PngInfo()
        notes.add_itxt("XML:com.adobe.xmp", (XMP % number).decode())
        files[f"png XMP {number}"] = encoded(tall, "PNG", pnginfo=notes)
    return files


def ways_in(file, stored):
    """Return the same picture as a path, bytes and a Pillow image."""
    return {
        "path": file,
        "text": str(file),
        "bytes": stored,
        "pillow": Image.open(io.BytesIO(stored)),
    }


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("crop", ["resize", "center"])
def test_training_and_every_way_into_prediction_see_the_same_pixels(tmp_path, crop):
    data = Data(image_size=SIDE, eval_crop=crop)
    for name, stored in zoo().items():
        file = tmp_path / name
        file.write_bytes(stored)
        ours = {way: prepare([x], data)[0] for way, x in ways_in(file, stored).items()}
        for way, pixels in ours.items():
            np.testing.assert_array_equal(pixels, ours["path"], err_msg=f"{name}: {way}")
        trained = evaluation_pixels(
            decodable(stored), data, orientation=np.int32(orientation(stored))
        ).numpy()
        difference = np.abs(trained.astype(int) - ours["path"])
        resized = crop == "center" or Image.open(io.BytesIO(stored)).size != (SIDE, SIDE)
        # Pillow rounds between the two passes of resizing, TensorFlow does not.
        assert difference.max() <= (1 if resized else 0), name


@pytest.mark.parametrize("name", sorted(bitmaps()))
def test_bitmaps_have_the_colours_of_the_photo(name):
    rgb = np.asarray(photo())
    expected = np.repeat(rgb[..., 1:2], 3, axis=2) if name[4:] in ("8 bits", "RLE") else rgb
    got = prepare([bitmaps()[name]], Data(image_size=SIDE))[0]
    assert np.abs(got.astype(int) - expected).max() <= (7 if "565" in name else 0)


def test_sixteen_bits_keep_their_high_byte_in_every_mode():
    values = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 40
    data = Data(image_size=SIDE)
    for image in (
        Image.fromarray(values),
        Image.fromarray(values.astype(np.int32)),
        Image.open(io.BytesIO(encoded(Image.fromarray(values), "TIFF"))),
    ):
        np.testing.assert_array_equal(prepare([image], data)[0][..., 0], values >> 8)
    for odd in (values.astype(np.float32), values.astype(np.int32) - 5):
        with refused("image 0", kind=DataError):  # the range of the pixels is unknown
            prepare([Image.fromarray(odd)], data)


@pytest.mark.parametrize(
    "name", ["jpeg EXIF 6", "png EXIF 6", "jpeg XMP 6", "png XMP 6", "webp XMP 6"]
)
def test_every_way_in_is_turned_upright_unless_disabled(tmp_path, name):
    stored, file = zoo()[name], tmp_path / "x"
    file.write_bytes(stored)
    assert orientation(stored) == 6
    kept, turned = (
        {
            name: prepare([x], Data(image_size=25, exif=exif))[0]
            for name, x in ways_in(file, stored).items()
        }
        for exif in (False, True)
    )
    plain = Image.fromarray(np.asarray(Image.open(io.BytesIO(stored))))
    expected = prepare([plain.transpose(Image.Transpose.ROTATE_270)], Data(image_size=25))[0]
    for name in kept:
        np.testing.assert_array_equal(turned[name], expected)
        np.testing.assert_array_equal(kept[name], prepare([plain], Data(image_size=25))[0])


def test_an_array_gives_the_pixels_of_its_file(tmp_path):
    photo().save(tmp_path / "x.png")
    for data in (Data(image_size=24), Data(image_size=24, eval_crop="center")):
        np.testing.assert_array_equal(
            prepare([np.asarray(photo())], data), prepare(tmp_path / "x.png", data)
        )


def test_images_that_pillow_refuses_are_refused_in_training():
    import tensorflow as tf

    stored = zoo()
    for encoding in (
        stored["bmp top down"][:-9],
        stored["png RGB"][:-40],
        stored["gif"][:-90],
        stored["webp"][:-90],
        stored["jpeg"][:-2],
        stored["jpeg CMYK"][:-90],
        b"",
        b"text",
    ):
        with refused("image 0", kind=DataError):
            prepare([encoding], Data(image_size=SIDE))
        with pytest.raises(tf.errors.InvalidArgumentError):
            evaluation_pixels(decodable(encoding), Data(image_size=SIDE))


def test_a_long_strip_is_not_enlarged_as_a_whole(monkeypatch):
    """Its centre equals that of a shorter strip, which is resized as a whole."""
    colours = np.random.default_rng(0).integers(0, 256, (4, 12_000, 3), dtype=np.uint8)
    data = Data(image_size=96, eval_crop="center")
    sizes, resize = [], Image.Image.resize

    def watched(self, size, *args, **kwargs):
        sizes.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watched)
    for strip in (colours, colours.transpose(1, 0, 2)):
        middle = slice(6000 - 20, 6000 + 20)
        short = strip[middle] if len(strip) > 4 else strip[:, middle]
        long, expected = prepare([strip], data)[0], prepare([short], data)[0]
        assert np.abs(long.astype(int) - expected).max() <= 2
    assert sizes[0] == sizes[2] == 96 * 96
    assert sizes[1] == sizes[3] > 96 * 96


def test_corrupt_metadata_of_a_readable_image_is_no_warning():
    """Warnings are errors in tests."""
    image, config = photo(), Data(image_size=SIDE, exif=True)
    plain = encoded(image, "JPEG")
    # A directory of 9 entries, of which there are none.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x09\0"
    broken = encoded(image, "JPEG", exif=exif)
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        opened = Image.open(io.BytesIO(broken))
    assert (prepare(broken, config) == prepare(plain, config)).all()
    assert (prepare(opened, config) == prepare(plain, config)).all()
    assert orientation(broken) == 0


def test_threads_that_ignore_warnings_leave_the_filters_as_they_were():
    before, inside = list(warnings.filters), threading.Barrier(2, timeout=10)

    def first():
        with without_pillow_warnings():
            inside.wait()  # both are inside
            inside.wait()  # the other has left

    thread = threading.Thread(target=first)
    thread.start()
    with without_pillow_warnings():
        inside.wait()
    inside.wait()
    thread.join()
    assert list(warnings.filters) == before
