"""Each kind of picture becomes the pixels that Pillow sees; everything else is refused, before it costs anything."""

import base64
import io
import json
import struct
import zlib
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from worker.core.errors import Reason, Unreadable
from worker.core.images import MAX_ID_BYTES, ImageSpec, decode, decode_into, encode_png

Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 24, 40
RGB = ImageSpec(HEIGHT, WIDTH, 3)
GREY = ImageSpec(HEIGHT, WIDTH, 1)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def smooth(channels: int, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """A picture without symmetry that JPEG reproduces well; (H, W, C), or (H, W) for one channel."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(y * (3 + c) + x * (5 - c) + 20 * c) % 256 if c == 3 else y * 4 + x * (c + 1) for c in range(channels)]
    pixels: Pixels = np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)
    return np.squeeze(pixels)


def save(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def picture(channels: int, mode: str | None = None) -> Image.Image:
    image = Image.fromarray(smooth(channels))
    return image if mode is None else image.convert(mode)


def on_black(data: bytes) -> NDArray[np.float64]:
    """What Pillow makes of the bytes: RGB, alpha composed on black; (H, W, 3)."""
    rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(np.float64)
    return rgba[..., :3] * rgba[..., 3:] / 255


def chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *before: bytes, interlace: int = 0) -> bytes:
    """A PNG of these fields; `rows` with their filter bytes, `before` = chunks between IHDR and IDAT."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    return PNG_SIGNATURE + header + b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")


def refused(value: bytes | None, content_type: str | None = None, spec: ImageSpec = RGB) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        decode(value, content_type, spec)
    assert caught.value.message
    return caught.value


def message(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# --- pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("grey", save(picture(1))),
        ("rgb", save(picture(3))),
        ("two levels", save(picture(1, "1"))),
        ("palette", save(picture(3).quantize(16))),
        ("palette of 256 colours", save(picture(3).quantize(256))),
        ("rgba", save(picture(4))),
        ("grey and alpha", save(Image.fromarray(smooth(4)[..., 2:], "LA"))),
        ("palette with alpha", save(picture(3).quantize(16), transparency=bytes(range(0, 256, 16)))),
        ("palette with a transparent colour", save(picture(3).quantize(16), transparency=3)),
        ("grey with a transparent level", save(picture(1), transparency=int(smooth(1)[5, 5]))),
        ("rgb with a transparent colour", save(picture(3), transparency=tuple(int(v) for v in smooth(3)[5, 5]))),
        ("with metadata", save(picture(3), dpi=(72, 72), icc_profile=b"not a profile")),
    ],
)
def test_a_png_is_what_pillow_sees(name: str, data: bytes) -> None:
    expected = on_black(data)
    assert np.abs(decode(data, "image/png", RGB).image - expected).max() <= 0.51
    grey = decode(data, "image/png", GREY).image[..., 0]
    assert np.abs(grey - expected @ [0.299, 0.587, 0.114]).max() <= 1.02


def test_a_transparent_level_is_seen_at_all() -> None:
    levels = smooth(1)
    image = decode(save(picture(1), transparency=int(levels[5, 5])), None, GREY).image[..., 0]
    assert levels[5, 5] > 0
    np.testing.assert_array_equal(image, np.where(levels == levels[5, 5], 0, levels))


def test_grey_of_few_bits_is_spread_over_all_levels() -> None:
    one_row = ImageSpec(1, 4, 1)
    assert decode(png(4, 1, 2, 0, b"\0\xe4"), None, one_row).image.ravel().tolist() == [255, 170, 85, 0]
    assert decode(png(4, 1, 4, 0, b"\0\x1f\x20"), None, one_row).image.ravel().tolist() == [17, 255, 34, 0]
    keyed = png(4, 1, 2, 0, b"\0\xe4", chunk(b"tRNS", b"\0\2"))
    assert decode(keyed, None, one_row).image.ravel().tolist() == [255, 0, 85, 0]


def test_16_bits_are_divided_by_257_and_rounded() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = cv2.imencode(".png", levels)[1].tobytes()
    image = decode(data, "image/png", ImageSpec(256, 256, 1)).image[..., 0]
    np.testing.assert_array_equal(image, ((levels.astype(np.int64) + 128) // 257).astype(np.uint8))


def test_16_bit_colour_alpha_and_transparency() -> None:
    pixels = np.array([[[65535, 30000, 1000], [257, 514, 65278]]], ">u2")
    opaque = png(2, 1, 16, 2, b"\0" + pixels.tobytes())
    spec = ImageSpec(1, 2, 3)
    assert decode(opaque, None, spec).image.tolist() == [[[255, 117, 4], [1, 2, 254]]]
    keyed = png(2, 1, 16, 2, b"\0" + pixels.tobytes(), chunk(b"tRNS", pixels[0, 0].tobytes()))
    assert decode(keyed, None, spec).image.tolist() == [[[0, 0, 0], [1, 2, 254]]]
    half = np.array([[[65535, 30000, 1000, 32768], [257, 514, 65278, 65535]]], ">u2")
    assert decode(png(2, 1, 16, 6, b"\0" + half.tobytes()), None, spec).image.tolist() == [
        [[128, 58, 2], [1, 2, 254]]
    ]
    grey = np.array([[1000, 1001]], ">u2")
    keyed = png(2, 1, 16, 0, b"\0" + grey.tobytes(), chunk(b"tRNS", struct.pack(">H", 1000)))
    assert decode(keyed, None, ImageSpec(1, 2, 1)).image.ravel().tolist() == [0, 4]


def test_an_alpha_chunk_that_fits_no_image_is_ignored_and_channels_stay_in_order() -> None:
    rows = b"\0" + bytes([10, 20, 30])
    data = png(1, 1, 8, 2, rows, chunk(b"tRNS", b"\0\1"))
    assert decode(data, None, ImageSpec(1, 1, 3)).image.tolist() == [[[10, 20, 30]]]


def test_an_interlaced_png() -> None:
    assert decode(png(2, 1, 8, 0, b"\0\1\0\2", interlace=1), None, ImageSpec(1, 2, 1)).image.tolist() == [[[1], [2]]]


@pytest.mark.parametrize("default_image", [False, True])
def test_an_animated_png_is_its_still_image(default_image: bool) -> None:
    others = [Image.fromarray(255 - smooth(3)), Image.fromarray(smooth(3) // 2)]
    data = save(picture(3), save_all=True, append_images=others, default_image=default_image)
    assert b"fdAT" in data
    np.testing.assert_array_equal(decode(data, "image/png", RGB).image, smooth(3))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("grey", save(picture(1), "JPEG", quality=95)),
        ("colour", save(picture(3), "JPEG", quality=95)),
        ("colour, halved chroma", save(picture(3), "JPEG", quality=95, subsampling=2)),
        ("progressive", save(picture(3), "JPEG", quality=95, progressive=True)),
        ("restart markers", save(picture(3), "JPEG", quality=95, restart_marker_rows=1)),
        ("cmyk", save(picture(3, "CMYK"), "JPEG", quality=95)),
        ("comment, profile", save(picture(3), "JPEG", quality=95, comment=b"x" * 300, icc_profile=b"y" * 70000)),
    ],
)
def test_a_jpeg_is_what_pillow_sees(name: str, data: bytes) -> None:
    expected = on_black(data)
    assert np.abs(decode(data, "image/jpeg", RGB).image - expected).max() <= 4
    grey = decode(data, "image/jpeg", GREY).image[..., 0]
    assert np.abs(grey - expected @ [0.299, 0.587, 0.114]).max() <= 4


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_applied_and_the_size_is_the_turned_one(form: str, orientation: int, order: str) -> None:
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    data = save(picture(3), form, exif=exif.tobytes())
    with Image.open(io.BytesIO(data)) as opened:
        turned = (
            opened.transpose(
                {
                    2: Image.Transpose.FLIP_LEFT_RIGHT,
                    3: Image.Transpose.ROTATE_180,
                    4: Image.Transpose.FLIP_TOP_BOTTOM,
                    5: Image.Transpose.TRANSPOSE,
                    6: Image.Transpose.ROTATE_270,
                    7: Image.Transpose.TRANSVERSE,
                    8: Image.Transpose.ROTATE_90,
                }[orientation]
            )
            if orientation > 1
            else opened.copy()
        )
    seen = ImageSpec(turned.height, turned.width, 3)
    assert np.abs(decode(data, None, seen).image.astype(int) - np.asarray(turned)).max() <= (
        4 if form == "JPEG" else 0
    )
    if orientation > 4:
        error = refused(data, None, RGB)
        assert error.reason == Reason.WRONG_SIZE
        assert "got 24 x 40" in error.message


def test_grey_is_replicated() -> None:
    image = decode(save(picture(1)), None, RGB).image
    np.testing.assert_array_equal(image, np.repeat(smooth(1)[..., None], 3, -1))


def test_resize_by_areas_only_where_allowed() -> None:
    large = np.kron(smooth(3), np.ones((2, 2, 1), np.uint8))
    large[::2, ::2] += 4
    data = save(Image.fromarray(large))
    error = refused(data)
    assert error.reason == Reason.WRONG_SIZE
    assert "expected 40 x 24" in error.message
    assert "got 80 x 48" in error.message
    image = decode(data, None, ImageSpec(HEIGHT, WIDTH, 3, resize=True)).image
    np.testing.assert_array_equal(image, smooth(3) + 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_encode_png_loses_nothing(channels: int) -> None:
    image = smooth(channels).reshape(HEIGHT, WIDTH, channels)
    spec = ImageSpec(HEIGHT, WIDTH, channels)
    for given in (image, image[:, ::-1]):
        np.testing.assert_array_equal(decode(encode_png(given), "image/png", spec).image, given)
    stored = np.asarray(Image.open(io.BytesIO(encode_png(image))))
    np.testing.assert_array_equal(stored.reshape(image.shape), image)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 2), (0, 4, 1)])
def test_encode_png_refuses_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a uint8 image"):
        encode_png(np.zeros(shape, np.uint8))


# --- which kind it is -----------------------------------------------------------------------------------------


def test_raw_bytes_go_into_the_place_given() -> None:
    batch = np.full((3, HEIGHT, WIDTH, 3), 7, np.uint8)
    assert decode_into(smooth(3).tobytes(), "application/octet-stream", RGB, batch[1]) == (None, None)
    np.testing.assert_array_equal(batch[1], smooth(3))
    assert (batch[[0, 2]] == 7).all()


@pytest.mark.parametrize("size", [HEIGHT * WIDTH * 3 - 1, HEIGHT * WIDTH * 3 + 1])
def test_raw_bytes_of_another_length(size: int) -> None:
    error = refused(bytes(size), "application/octet-stream")
    assert error.reason == Reason.WRONG_SIZE
    assert "2,880" in error.message
    assert f"{size:,}" in error.message
    assert refused(bytes(size)).reason == Reason.NOT_AN_IMAGE


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "image/jpg", "IMAGE/JPEG", " image/jpeg ; q=1", "image/jpeg;"]
)
def test_content_types_that_mean_jpeg(content_type: str) -> None:
    assert decode(save(picture(3), "JPEG"), content_type, RGB).image.shape == RGB.shape
    assert refused(save(picture(3)), content_type).reason == Reason.NOT_AN_IMAGE


@pytest.mark.parametrize("content_type", ["", "image/webp", "png", "text/plain; image/png", "\ud800" * 200])
def test_an_unknown_content_type_is_not_guessed(content_type: str) -> None:
    error = refused(save(picture(3)), content_type)
    assert error.reason == Reason.UNKNOWN_CONTENT_TYPE
    assert "image/png" in error.message
    assert len(error.message.encode()) < 1500


def test_the_header_wins_over_the_bytes() -> None:
    looks_like_png = PNG_SIGNATURE + bytes(HEIGHT * WIDTH * 3 - 8)
    assert decode(looks_like_png, "application/octet-stream", RGB).image.tobytes() == looks_like_png
    assert refused(looks_like_png).reason == Reason.NOT_AN_IMAGE
    assert refused(message(image="")).reason == Reason.NOT_AN_IMAGE
    for content_type in ("image/png", "image/jpeg"):
        assert refused(smooth(3).tobytes(), content_type).reason == Reason.NOT_AN_IMAGE
    assert refused(save(picture(3), "JPEG"), "image/png").reason == Reason.NOT_AN_IMAGE


def test_without_a_header_the_raw_length_comes_before_json() -> None:
    spec = ImageSpec(1, 12, 1)
    assert decode(b'{"image":""}', None, spec).image.tobytes() == b'{"image":""}'
    assert refused(b'{"image":""} ', None, spec).reason == Reason.NOT_AN_IMAGE
    assert refused(b" \r\n\t[1]", None, spec).message.startswith("expected a PNG, a JPEG, 1 x 12 x 1 raw bytes")


@pytest.mark.parametrize(("value", "reason"), [(None, Reason.NULL_VALUE), (b"", Reason.EMPTY_VALUE)])
@pytest.mark.parametrize("content_type", [None, "image/png", "nonsense"])
def test_nothing_is_not_an_image(value: bytes | None, reason: Reason, content_type: str | None) -> None:
    assert refused(value, content_type).reason == reason


def test_the_caller_must_bring_the_right_place() -> None:
    with pytest.raises(ValueError, match=r"shape \(24, 40, 3\)"):
        decode_into(smooth(3).tobytes(), None, RGB, np.zeros((HEIGHT, WIDTH, 1), np.uint8))
    with pytest.raises(ValueError, match="contiguous"):
        decode_into(smooth(3).tobytes(), None, RGB, np.zeros((3, HEIGHT, WIDTH), np.uint8).transpose(1, 2, 0))


@pytest.mark.parametrize("field", ["height", "width", "channels", "max_bytes", "max_pixels", "max_decoded_bytes"])
def test_a_spec_out_of_range(field: str) -> None:
    changed: dict[str, Any] = {field: 0}
    with pytest.raises(ValueError, match=field):
        replace(RGB, **changed)
    with pytest.raises(ValueError, match="max_pixels must be at least height x width"):
        replace(RGB, max_pixels=HEIGHT * WIDTH - 1)


# --- JSON -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [None, "application/json; charset=utf-8"])
@pytest.mark.parametrize("data", [save(picture(3)), smooth(3).tobytes()], ids=["png", "raw"])
def test_json_carries_an_image_an_id_and_a_time(content_type: str | None, data: bytes) -> None:
    value = b" \r\n\t" + message(image=b64(data), id="Teil 7 é", captured_at_ms=1_700_000_000_123, line=[{"a": 1}])
    decoded = decode(value, content_type, RGB)
    np.testing.assert_array_equal(decoded.image, smooth(3))
    assert (decoded.id, decoded.captured_at_ms) == ("Teil 7 é", 1_700_000_000_123)


def test_json_may_leave_out_all_but_the_image() -> None:
    data = b64(save(picture(3), "JPEG"))
    assert decode(message(image=data), None, RGB)[1:] == (None, None)
    assert decode(message(image=data, id=None, captured_at_ms=None), None, RGB)[1:] == (None, None)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"{", "truncated"),
        (b"[]", "object"),
        (b"{}", "`image`"),
        (message(image=None), "$.image"),
        (message(image=["QUJD"]), "$.image"),
        (message(image="QUJD", id=12), "$.id"),
        (message(image="QUJD", id="é" * (MAX_ID_BYTES // 2) + "x"), "256"),
        (message(image="QUJD", captured_at_ms="now"), "$.captured_at_ms"),
        (message(image="QUJD", captured_at_ms=1.5), "$.captured_at_ms"),
        (message(image="QUJD", captured_at_ms=True), "$.captured_at_ms"),
        (message(image="QUJD", captured_at_ms=2**63), "$.captured_at_ms"),
        (b'{"image": "QUJD", "id": "\xff\xfe"}', "utf-8"),
        (b'{"image": "QUJD", "id": "\\udc00"}', "surrogate"),
        (b'{"image": "QUJD"} x', "trailing"),
        (b'{"image": "QUJD", "x": ' + b"[" * 200_000, "recursion"),
    ],
)
def test_bad_json_is_said_to_be(value: bytes, says: str) -> None:
    error = refused(value, "application/json")
    assert error.reason == Reason.BAD_JSON
    assert says.lower() in error.message.lower()


def test_the_longest_id() -> None:
    assert decode(message(image=b64(smooth(3).tobytes()), id="x" * MAX_ID_BYTES), None, RGB).id == "x" * 256


@pytest.mark.parametrize(
    "text",
    [
        "QUJ",
        "QUJD=",
        "QUJD==",
        "QUJD====",
        "QUJD\n",
        "QU JD",
        "data:image/png;base64,QUJD",
        "QU-_",
        "é",
        "====",
        "QQ==QQ==",
    ],
)
def test_base64_is_strict(text: str) -> None:
    error = refused(message(image=text), "application/json")
    assert error.reason == Reason.BAD_BASE64
    assert "RFC 4648" in error.message


def test_json_in_json_is_no_image() -> None:
    inner = message(image=b64(smooth(3).tobytes()))
    error = refused(message(image=b64(inner)))
    assert error.reason == Reason.NOT_AN_IMAGE
    assert "JSON within JSON" in error.message
