"""Any bytes, under any content-type, give an image of the right shape or `Unreadable`; never anything else."""

import base64
import json
import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from worker.core.errors import Unreadable
from worker.core.image_headers import read_jpeg, read_png
from worker.core.images import ImageSpec, decode, decode_into, encode_png

HEIGHT, WIDTH = 6, 9
MIB = 2**20
SPECS = [
    ImageSpec(HEIGHT, WIDTH, channels, resize, max_pixels=4_000_000, max_decoded_bytes=16 * MIB)
    for channels in (1, 3)
    for resize in (False, True)
]
CONTENT_TYPES = [None, "image/png", "image/jpeg", "application/octet-stream", "application/json"]


def chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def seeds() -> list[bytes]:
    """Whole pictures of many kinds, to be damaged."""
    rng = np.random.default_rng(7)
    found = []
    for shape in ((HEIGHT, WIDTH), (HEIGHT, WIDTH, 3), (HEIGHT, WIDTH, 4)):
        pixels = rng.integers(0, 256, shape)
        found.append(cv2.imencode(".png", pixels.astype(np.uint8))[1].tobytes())
        found.append(cv2.imencode(".png", (pixels * 257).astype(np.uint16))[1].tobytes())
        if shape[2:] != (4,):
            for options in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]):
                data = cv2.imencode(".jpg", pixels.astype(np.uint8), options)[1].tobytes()
                found.append(data)
                exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0"
                found.append(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    grey = found[0]
    extra = chunk(b"tRNS", b"\0\7") + chunk(b"acTL", bytes(8)) + chunk(b"eXIf", b"II*\0\x08\0\0\0") + chunk(b"tEXt")
    found.append(grey[:33] + extra + grey[33:])
    return found


SEEDS = seeds()


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A whole picture with bytes changed, cut out, put in or repeated, and at times its CRCs made right again."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        # Most that matters stands in the first bytes.
        at = draw(st.integers(0, min(60, len(data))) | st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        data[at : at + length] = draw(st.binary(max_size=8) | st.just(bytes(data[at : at + length]) * 2))
    if draw(st.booleans()):
        return right_crcs(bytes(data))
    return bytes(data)


def right_crcs(data: bytes) -> bytes:
    """The bytes with the CRC of each PNG chunk set right, as far as there are chunks."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            break
        parts.append(data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end])))
        at = end + 4
    return b"".join([*parts, data[at:]])


def check(value: bytes | None, content_type: str | None, spec: ImageSpec) -> None:
    """The rule that this file is about; that memory stays bounded, too."""
    out = np.full(spec.shape, 99, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        decode_into(value, content_type, spec, out)
    except Unreadable as error:
        assert (out == 99).all()
        assert 0 < len(error.message.encode()) < 2_000  # noqa: PT017 - both ways to end are checked
    else:
        np.testing.assert_array_equal(decode(value, content_type, spec).image, out)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 * 1024


@given(value=st.none() | st.binary(max_size=200), content_type=st.sampled_from(CONTENT_TYPES) | st.text(max_size=40))
@example(value=b"\x89PNG\r\n\x1a\n", content_type=None)
@example(value=b"\xff\xd8\xff", content_type=None)
@example(value=b"{", content_type=None)
def test_any_bytes(value: bytes | None, content_type: str | None) -> None:
    for spec in SPECS:
        check(value, content_type, spec)


@settings(max_examples=400)
@given(value=damaged(), spec=st.sampled_from(SPECS))
def test_damaged_pictures(value: bytes, spec: ImageSpec) -> None:
    check(value, None, spec)


@given(
    width=st.integers(0, 2**32 - 1) | st.integers(0, 3000),
    height=st.integers(0, 2**32 - 1) | st.integers(0, 3000),
    depth=st.sampled_from([1, 2, 4, 8, 16]) | st.integers(0, 255),
    colour=st.sampled_from([0, 2, 3, 4, 6]) | st.integers(0, 255),
    rest=st.binary(min_size=3, max_size=3) | st.sampled_from([bytes(3), b"\0\0\1"]),
    spec=st.sampled_from(SPECS),
)
def test_any_png_header(width: int, height: int, depth: int, colour: int, rest: bytes, spec: ImageSpec) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBB", width, height, depth, colour) + rest)
    body = chunk(b"PLTE", bytes(range(48))) * (colour == 3) + chunk(b"IDAT", zlib.compress(bytes(4000)))
    value = b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND")
    check(value, "image/png", spec)


@given(
    width=st.integers(0, 65535),
    height=st.integers(0, 65535),
    marker=st.sampled_from([0xC0, 0xC1, 0xC2]) | st.integers(0, 255),
    seed=st.sampled_from([data for data in SEEDS if data.startswith(b"\xff\xd8")]),
)
def test_any_jpeg_frame(width: int, height: int, marker: int, seed: bytes) -> None:
    at = max(seed.find(b"\xff\xc0\x00"), seed.find(b"\xff\xc2\x00"))
    size = struct.pack(">HH", height, width)
    check(seed[: at + 1] + bytes([marker]) + seed[at + 2 : at + 5] + size + seed[at + 9 :], None, SPECS[-1])


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_a_header_says_what_the_decoder_gives(seed: bytes) -> None:
    header = read_png(seed) if seed.startswith(b"\x89PNG") else read_jpeg(seed)
    stored = cv2.imdecode(np.frombuffer(header.encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    assert stored is not None
    assert stored.shape[:2] == (header.height, header.width)
    assert (stored.shape[2] if stored.ndim == 3 else 1) == header.channels
    assert header.pixel_bytes >= header.channels * stored.itemsize


@given(
    fields=st.dictionaries(
        st.sampled_from(["image", "id", "captured_at_ms", "other"]),
        st.none()
        | st.integers()
        | st.floats()
        | st.text()
        | st.binary(max_size=60).map(lambda b: base64.b64encode(b).decode()),
    ),
    cut=st.integers(0, 3),
)
def test_any_json(fields: dict[str, object], cut: int) -> None:
    text = json.dumps(fields, ensure_ascii=False).encode(errors="surrogatepass")
    check(text[: len(text) - cut], "application/json", SPECS[0])


images = st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]), st.integers(0, 2**32)).map(
    lambda drawn: np.random.default_rng(drawn[3]).integers(0, 256, drawn[:3], dtype=np.uint8)
)


@given(image=images, id_=st.text(max_size=64), at=st.integers(-(2**63), 2**63 - 1))
def test_what_is_sent_is_what_arrives(image: NDArray[np.uint8], id_: str, at: int) -> None:
    spec = ImageSpec(*image.shape)
    png = encode_png(image)
    # A raw image may begin with any bytes, so its kind is declared.
    raw = image.tobytes()
    for value, content_type in ((png, None), (png, "image/png"), (raw, "application/octet-stream")):
        np.testing.assert_array_equal(decode(value, content_type, spec).image, image)
    value = json.dumps({"captured_at_ms": at, "id": id_, "image": base64.b64encode(png).decode()}).encode()
    decoded = decode(value, "application/json", spec)
    np.testing.assert_array_equal(decoded.image, image)
    assert (decoded.id, decoded.captured_at_ms) == (id_, at)
