"""A picture is refused by its header before it costs anything, and is whole or refused."""

import io
import resource
import struct
import zlib
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from worker.core.errors import Reason, Unreadable
from worker.core.images import ImageSpec, decode, decode_into

HEIGHT, WIDTH = 24, 40
RGB = ImageSpec(HEIGHT, WIDTH, 3)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def smooth(channels: int) -> NDArray[np.uint8]:
    """A picture that JPEG reproduces well; (H, W, C), or (H, W) for one channel."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    pixels: NDArray[np.uint8] = np.stack([y * 4 + x * (c + 1) for c in range(channels)], -1).astype(np.uint8)
    return np.squeeze(pixels)


def picture(channels: int) -> Image.Image:
    return Image.fromarray(smooth(channels))


def save(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


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


# --- limits ---------------------------------------------------------------------------------------------------


class Decoder:
    """Counts what reaches OpenCV."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self._imdecode = cv2.imdecode
        monkeypatch.setattr(cv2, "imdecode", self)

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self._imdecode(*arguments)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    return Decoder(monkeypatch)


def jpeg_of_size(width: int, height: int, **options: Any) -> bytes:
    """A valid JPEG whose frame header claims another size."""
    data = save(picture(3), "JPEG", **options)
    frame = data.find(b"\xff\xc2" if options.get("progressive") else b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def test_a_message_of_too_many_bytes(decoder: Decoder) -> None:
    data = save(picture(3))
    for limit, taken in ((len(data), True), (len(data) - 1, False)):
        spec = ImageSpec(HEIGHT, WIDTH, 3, max_bytes=limit)
        if taken:
            assert decode(data, None, spec).image.shape == spec.shape
        else:
            assert refused(data, None, spec).reason == Reason.TOO_LARGE
    assert decoder.calls == 1


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(30_000, 30_000, 8, 0, b"\0"), Reason.TOO_MANY_PIXELS),
        (png(2**31 - 1, 2**31 - 1, 16, 6, b"\0"), Reason.TOO_MANY_PIXELS),
        (png(6_000, 6_000, 16, 6, b"\0"), Reason.TOO_MANY_PIXELS),
        (jpeg_of_size(65_500, 65_500), Reason.TOO_MANY_PIXELS),
        (jpeg_of_size(6_000, 6_000, progressive=True), Reason.TOO_MANY_PIXELS),
        (png(0, 5, 8, 0, b"\0"), Reason.NOT_AN_IMAGE),
        (png(2**31, 5, 8, 0, b"\0"), Reason.NOT_AN_IMAGE),
        (jpeg_of_size(0, 5), Reason.NOT_AN_IMAGE),
    ],
)
def test_a_huge_image_never_reaches_the_decoder(decoder: Decoder, resize: bool, data: bytes, reason: Reason) -> None:
    assert refused(data, None, ImageSpec(HEIGHT, WIDTH, 3, resize=resize)).reason == reason
    assert decoder.calls == 0


@pytest.mark.parametrize("data", [png(41, 24, 8, 0, bytes(42 * 24)), jpeg_of_size(40, 23)])
def test_an_image_of_the_wrong_size_never_reaches_the_decoder(decoder: Decoder, data: bytes) -> None:
    assert refused(data).reason == Reason.WRONG_SIZE
    assert decoder.calls == 0


def test_the_limits_on_pixels_are_exact() -> None:
    data = save(picture(3))
    decode(data, None, ImageSpec(HEIGHT, WIDTH, 3, max_pixels=960, max_decoded_bytes=960 * 3))
    error = refused(data, None, ImageSpec(4, 4, 3, resize=True, max_pixels=959))
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert "959 pixels" in error.message
    error = refused(data, None, ImageSpec(HEIGHT, WIDTH, 3, max_decoded_bytes=960 * 3 - 1))
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert "2,879 bytes" in error.message


def test_what_only_opencv_refuses_is_unreadable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = png(2**20 + 1, 1, 8, 0, bytes(2**20 + 2))
    assert refused(wide, None, ImageSpec(1, 8, 1, resize=True)).reason == Reason.NOT_AN_IMAGE

    def raising(*_: Any) -> None:
        raise cv2.error("no")

    monkeypatch.setattr(cv2, "imdecode", raising)
    assert "OpenCV refuses the PNG of 40 x 24 pixels: no" in refused(save(picture(3))).message


@pytest.mark.parametrize("shape", [(WIDTH, WIDTH, 3), (HEIGHT, HEIGHT, 3)])
def test_a_decoder_that_sees_another_size_than_the_header_is_not_believed(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros(shape, np.uint8))
    assert refused(save(picture(3)), None, ImageSpec(HEIGHT, WIDTH, 3, resize=True)).reason == Reason.NOT_AN_IMAGE


def test_a_chunk_that_claims_2_gib_is_not_allocated(decoder: Decoder) -> None:
    start = png(WIDTH, HEIGHT, 8, 2, b"")[:33]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(start + struct.pack(">I", 2**31 - 1) + b"tEXt" + b"abc").reason == Reason.TRUNCATED_IMAGE
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    assert decoder.calls == 0


def test_chunks_that_unpack_to_much_do_not_reach_the_decoder() -> None:
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10_000_000)))
    rows = b"".join(b"\0" + row.tobytes() for row in smooth(3))
    np.testing.assert_array_equal(decode(png(WIDTH, HEIGHT, 8, 2, rows, bomb), None, RGB).image, smooth(3))


def test_a_jpeg_of_a_thousand_passes(decoder: Decoder) -> None:
    data = save(picture(3), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    error = refused(data[:-2] + last * 1000 + data[-2:])
    assert error.reason == Reason.TOO_MANY_PIXELS
    assert "scans" in error.message
    assert decoder.calls == 0


def test_millions_of_empty_chunks_and_segments_end_early(decoder: Decoder) -> None:
    start = png(WIDTH, HEIGHT, 8, 2, b"")[:33]
    assert "chunks" in refused(start + chunk(b"tEXt") * 100_000).message
    assert "segments" in refused(b"\xff\xd8" + b"\xff\xe2\x00\x02" * 100_000).message
    assert refused(b"\xff\xd8" + b"\xff" * 10_000_000).reason == Reason.TRUNCATED_IMAGE
    assert refused(b"\xff\xd8\xff\x00" + b"\xff\x00" * 5_000_000).reason == Reason.TRUNCATED_IMAGE
    assert decoder.calls == 0


# --- damage ---------------------------------------------------------------------------------------------------

WHOLE = {
    "png": save(picture(3)),
    "png, palette": save(picture(3).quantize(16), transparency=3),
    "png, animated": save(picture(3), save_all=True, append_images=[Image.fromarray(255 - smooth(3))]),
    "jpeg": save(picture(3), "JPEG"),
    "jpeg, an end marker in its comment": save(picture(3), "JPEG", comment=b"\xff\xd9"),
    "jpeg, progressive": save(picture(3), "JPEG", progressive=True),
    "jpeg, restart markers": save(picture(1), "JPEG", restart_marker_rows=1),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_truncated_picture_is_refused_wherever_it_ends(name: str, decoder: Decoder) -> None:
    data = WHOLE[name]
    out = np.full(RGB.shape, 7, np.uint8)
    for end in range(8, len(data)):
        with pytest.raises(Unreadable) as caught:
            decode_into(data[:end], None, RGB, out)
        assert caught.value.reason == Reason.TRUNCATED_IMAGE, end
    assert decoder.calls == 0
    assert (out == 7).all()


@pytest.mark.parametrize("name", WHOLE)
def test_what_follows_a_whole_picture_is_not_looked_at(name: str) -> None:
    whole = decode(WHOLE[name], None, RGB).image
    np.testing.assert_array_equal(decode(WHOLE[name] + b"more \xff\xff\0" * 99, None, RGB).image, whole)


def test_any_flipped_bit_of_a_png_that_is_looked_at_is_noticed() -> None:
    data = WHOLE["png"]
    whole = decode(data, None, RGB).image
    for at in range(8, len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x04
        with suppress(Unreadable):
            np.testing.assert_array_equal(decode(bytes(damaged), None, RGB).image, whole)


ROWS = b"".join(b"\0" + row.tobytes() for row in smooth(3))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (png(WIDTH, HEIGHT, 8, 2, ROWS[:-1]), "damaged"),
        (png(WIDTH, HEIGHT, 8, 3, bytes(41 * 24)), "damaged"),
        (png(WIDTH, HEIGHT, 8, 2, ROWS, chunk(b"ABCD")), "b'ABCD'"),
        (png(WIDTH, HEIGHT, 8, 2, ROWS, chunk(b"a\0cd")), "unknown type"),
        (png(WIDTH, HEIGHT, 8, 2, ROWS, chunk(b"tRNS", bytes(6))[:-1] + b"x"), "CRC"),
        (png(WIDTH, HEIGHT, 8, 2, ROWS, chunk(b"eXIf", b"II*\0")[:-1] + b"x"), "CRC"),
        (png(WIDTH, HEIGHT, 8, 2, ROWS).replace(b"IHDR", b"IHDS"), "IHDR"),
        (png(WIDTH, HEIGHT, 8, 2, ROWS).replace(struct.pack(">I", WIDTH), struct.pack(">I", 41), 1), "IHDR"),
        (png(WIDTH, HEIGHT, 8, 5, ROWS), "colour type 5"),
        (png(WIDTH, HEIGHT, 4, 2, ROWS), "4 bits"),
        (png(WIDTH, HEIGHT, 8, 2, ROWS, interlace=2), "no PNG has"),
        (WHOLE["jpeg"].replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), "12 bits"),
        (WHOLE["jpeg"].replace(b"\xff\xc0\x00\x11", b"\xff\xc3\x00\x11"), "SOF3"),
        (WHOLE["jpeg"].replace(b"\xff\xc0\x00\x11", b"\xff\xc9\x00\x11"), "SOF9"),
        (WHOLE["jpeg"].replace(b"\xff\xc0\x00\x11", b"\xff\xc0\x00\x12"), "wrong length"),
        (WHOLE["jpeg"].replace(b"\xff\xc0\x00\x11", b"\xff\xc0\x00\x07"), "too short"),
        (WHOLE["jpeg"].replace(b"\xff\xc0\x00\x11", b"\xff\xe3\x00\x11"), "without a frame header"),
        (b"\xff\xd8" * 2 + WHOLE["jpeg"][2:], "0xD8"),
        (b"\xff\xd8" + WHOLE["jpeg"][WHOLE["jpeg"].find(b"\xff\xc0") :][:19] + WHOLE["jpeg"][2:], "second frame"),
        (b"\xff\xd8\xff\xe1\x00\x01", "unexpected marker 0xE1"),
        (b"\xff\xd8\xff\xd9\x00\x02", "unexpected marker 0xD9"),
    ],
)
def test_damage_is_named(data: bytes, says: str) -> None:
    error = refused(data)
    assert error.reason == Reason.NOT_AN_IMAGE
    assert says in error.message


def test_a_jpeg_of_two_components_cannot_be_converted() -> None:
    data = WHOLE["jpeg"]
    at = data.find(b"\xff\xc0")
    assert refused(data[: at + 9] + b"\x02" + data[at + 10 :]).reason == Reason.WRONG_CHANNELS


def test_stray_and_fill_bytes_between_segments_are_skipped_as_decoders_do() -> None:
    data = WHOLE["jpeg"]
    at = data.find(b"\xff\xdb")
    stray = data[:at] + b"\0\0\xff\0\xff\xff\xff\xd0\xff" + data[at:]
    np.testing.assert_array_equal(decode(stray, None, RGB).image, decode(data, None, RGB).image)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II",
        b"XX*\0\x08\0\0\0",
        b"II+\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x04\0\x01\0\0\0\x06\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x02\0\0\0\x06\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06",
    ],
)
def test_damaged_exif_turns_nothing(exif: bytes) -> None:
    for data in (
        save(picture(3), "JPEG", exif=b"Exif\0\0" + exif),
        png(WIDTH, HEIGHT, 8, 2, ROWS, chunk(b"eXIf", exif)),
    ):
        assert np.abs(decode(data, None, RGB).image.astype(int) - smooth(3)).max() < 40


@pytest.mark.parametrize("exif", [b"II", b"II*", b"II*\0\x08\0\0\0\x01", b"II*\0\x08\0\0\0\x09\0\x12\x01\x03\0"])
def test_nothing_is_read_past_the_end_of_exif(exif: bytes) -> None:
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    assert refused(b"\xff\xd8" + segment).reason == Reason.TRUNCATED_IMAGE


def test_the_first_exif_counts() -> None:
    data = WHOLE["jpeg"]
    for orientation in (b"\x03", b"\x01"):
        exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + orientation + b"\0\0\0"
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    np.testing.assert_array_equal(decode(data, None, RGB).image, decode(WHOLE["jpeg"], None, RGB).image)
