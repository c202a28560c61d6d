"""From the bytes of a message or a file to the uint8 image that the model takes: the one decoder of the project.

Rules: any bytes at all give an image or `Unreadable`, nothing else; limits are checked from the image's own header
before anything is decoded; a picture is whole or refused; the array to fill is written last, or not at all.

Pixels: RGB order; EXIF orientation applied; 16 bits scaled by 1/257, rounded; palette and grey of few bits
expanded; alpha composed on black, then dropped; colour to grey by the ITU-R 601 weights; grey to colour by
replication; CMYK JPEGs by the decoder's conversion without a colour profile; an animated PNG is its still image.
Gamma and colour profiles are not applied.

What no header shows: a JPEG whose data broke off and that was given an end marker all the same decodes to a partly
grey picture. JPEG has no checksum; senders that need to know send PNG.
"""

import binascii
import re
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from worker.core.errors import Reason, Unreadable
from worker.core.image_headers import JPEG_SIGNATURE, PNG_SIGNATURE, read_jpeg, read_png

Kind = Literal["png", "jpeg", "raw", "json"]
Meta = tuple[str | None, int | None]
"""(id, captured_at_ms) of a JSON message; None where it has none, and for everything else."""

MAX_ID_BYTES = 256

_KINDS: dict[str, Kind] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "application/octet-stream": "raw",
    "application/json": "json",
}
_NO_META: Meta = (None, None)
_BASE64_EXPECTED = (
    "the field `image` must be padded base64 (RFC 4648, section 4) without line breaks or a `data:` prefix"
)
_JSON_OBJECT = re.compile(rb"[ \t\r\n]*\{")

_AS_STORED = cv2.IMREAD_UNCHANGED
_AS_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What the model takes, and what is accepted for it.

    `height`, `width` in pixels, `channels` 1 (grey) or 3 (RGB). `resize`: bring other sizes to this one by area
    interpolation instead of refusing them. `max_bytes` bounds a message, `max_pixels` the encoded image,
    `max_decoded_bytes` what the decoder holds of it (decoding takes about twice that for a moment).

    Raises:
        ValueError: a number is out of its range.
    """

    height: int
    width: int
    channels: int
    resize: bool = False
    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    max_decoded_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), not {self.channels}")
        for name in ("height", "width", "max_bytes", "max_pixels", "max_decoded_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.height * self.width > self.max_pixels:
            raise ValueError(
                f"max_pixels must be at least height x width ({self.height * self.width}), not {self.max_pixels}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels


class Decoded(NamedTuple):
    """An image, uint8 (H, W, C), and what its JSON message said of it."""

    image: NDArray[np.uint8]
    id: str | None
    captured_at_ms: int | None


class _Message(msgspec.Struct, gc=False):
    image: str
    id: str | None = None
    captured_at_ms: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None


_MESSAGES = msgspec.json.Decoder(_Message)


def decode(value: bytes | None, content_type: str | None, spec: ImageSpec) -> Decoded:
    """Decode one message into a new array; see `decode_into`."""
    image = np.empty(spec.shape, np.uint8)
    return Decoded(image, *decode_into(value, content_type, spec, image))


def decode_into(value: bytes | None, content_type: str | None, spec: ImageSpec, out: NDArray[np.uint8]) -> Meta:
    """Decode one message into `out`, uint8 (H, W, C), C-contiguous, for instance one image's place in a batch.

    `content_type` is the header's value and decides what `value` is; where it is None, the first of these does:
    a PNG or JPEG signature, exactly H*W*C bytes (raw), a leading `{` (JSON).

    Returns:
        id and captured_at_ms (milliseconds since the epoch) of a JSON message, each None where there is none.

    Raises:
        Unreadable: the message cannot be had as an image; `out` is as it was.
        ValueError: `out` has not the shape that `spec` says, or is not contiguous: the caller's mistake.
    """
    if out.shape != spec.shape or not out.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous, of the shape {spec.shape}; it has {out.shape}")
    if not value:
        if value is None:
            raise Unreadable(Reason.NULL_VALUE, "expected an image, got a null value (a tombstone)")
        raise Unreadable(Reason.EMPTY_VALUE, "expected an image, got an empty value")
    if len(value) > spec.max_bytes:
        message = f"expected at most {spec.max_bytes:,} bytes, got {len(value):,}; raise the limit or send less"
        raise Unreadable(Reason.TOO_LARGE, message)
    kind = _sniffed(value, spec) if content_type is None else _declared(content_type)
    meta = _NO_META
    if kind == "json":
        value, meta = _open_json(value)
        kind = _sniffed(value, spec)
        if kind == "json":
            raise Unreadable(Reason.NOT_AN_IMAGE, "expected an image in the field `image`, got JSON within JSON")
    if kind == "raw":
        if len(value) != out.size:
            height, width, channels = spec.shape
            expected = f"expected {out.size:,} bytes ({height} x {width} x {channels}, row by row)"
            raise Unreadable(Reason.WRONG_SIZE, f"{expected}, got {len(value):,}; send one raw image of that size")
        out.data.cast("B")[:] = value  # a third of the time of a numpy assignment
    else:
        _decode_picture(value, kind, spec, out)
    return meta


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Encode a uint8 image (H, W, C), C = 1 (grey) or 3 (RGB), as PNG, without loss.

    Raises:
        ValueError: the array is no such image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        raise ValueError(f"expected a uint8 image (H, W, 1 or 3), got {image.dtype} {image.shape}")
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[2] == 3 else image
    done, encoded = cv2.imencode(".png", stored)
    if not done:
        raise ValueError(f"OpenCV cannot write a PNG of the shape {image.shape}")
    return encoded.tobytes()


def _declared(content_type: str) -> Kind:
    kind = _KINDS.get(content_type) or _KINDS.get(content_type.partition(";")[0].strip().lower())
    if kind is None:
        message = f"expected a content-type of {', '.join(_KINDS)}, or none; got {content_type[:80]!r}"
        raise Unreadable(Reason.UNKNOWN_CONTENT_TYPE, message)
    return kind


def _sniffed(value: bytes, spec: ImageSpec) -> Kind:
    if value.startswith(PNG_SIGNATURE):
        return "png"
    if value.startswith(JPEG_SIGNATURE):
        return "jpeg"
    if len(value) == spec.height * spec.width * spec.channels:
        return "raw"
    if _JSON_OBJECT.match(value):
        return "json"
    message = (
        f"expected a PNG, a JPEG, {spec.height} x {spec.width} x {spec.channels} raw bytes or JSON, "
        f"got {len(value):,} bytes that begin with {value[:8]!r}; send one of these, with its content-type"
    )
    raise Unreadable(Reason.NOT_AN_IMAGE, message)


def _open_json(value: bytes) -> tuple[bytes, Meta]:
    """The image's bytes and the rest of the message `{"image": base64, "id": ..., "captured_at_ms": ...}`."""
    try:
        message = _MESSAGES.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(
            Reason.BAD_JSON, f'expected {{"image": "<base64>", "id": "...", "captured_at_ms": 0}}: {error}'
        ) from error
    if message.id is not None and len(message.id.encode()) > MAX_ID_BYTES:
        raise Unreadable(Reason.BAD_JSON, f"the field `id` may have at most {MAX_ID_BYTES} bytes in UTF-8")
    text = message.image
    try:
        image = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise Unreadable(Reason.BAD_BASE64, f"{_BASE64_EXPECTED}: {error}") from error
    if len(image) != len(text) * 3 // 4 - text.count("=", -2):
        # The strict mode lets padding pass that nothing calls for.
        raise Unreadable(Reason.BAD_BASE64, f"{_BASE64_EXPECTED}: too much padding")
    return image, (message.id, message.captured_at_ms)


def _decode_picture(data: bytes, kind: Literal["png", "jpeg"], spec: ImageSpec, out: NDArray[np.uint8]) -> None:
    """Decode a PNG or JPEG into `out`, uint8 (H, W, C)."""
    if not data.startswith(PNG_SIGNATURE if kind == "png" else JPEG_SIGNATURE):
        message = f"expected a {kind.upper()}, got bytes that begin with {data[:8]!r}; send what the header says"
        raise Unreadable(Reason.NOT_AN_IMAGE, message)
    header = read_png(data) if kind == "png" else read_jpeg(data)
    width, height, channels, pixel_bytes, orientation, transparent, encoded = header
    if orientation < 5:
        _check_limits(width, height, pixel_bytes, spec)
    else:
        _check_limits(height, width, pixel_bytes, spec)
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _AS_RGB if channels == 3 else _AS_STORED)
    except cv2.error as error:
        message = f"OpenCV refuses the {kind.upper()} of {width} x {height} pixels: {error}"
        raise Unreadable(Reason.NOT_AN_IMAGE, message) from error
    if image is None or image.shape[0] != height or image.shape[1] != width:
        message = f"the {kind.upper()} has a valid header and damaged data; send it again"
        raise Unreadable(Reason.NOT_AN_IMAGE, message)
    if transparent is not None:
        image[image == transparent] = 0
    if channels == 4:
        image = _composed_on_black(image)
    if image.itemsize == 2:
        image = cv2.convertScaleAbs(image, alpha=1 / 257)
    if orientation > 1:
        image = _oriented(image, orientation)
    if spec.channels == 1 and channels > 1:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if spec.resize and image.shape[:2] != (spec.height, spec.width):
        image = cv2.resize(image, (spec.width, spec.height), interpolation=cv2.INTER_AREA)
    out[...] = image[:, :, None] if image.ndim == 2 else image


def _check_limits(width: int, height: int, pixel_bytes: int, spec: ImageSpec) -> None:
    """Refuse an image by its size as it is to be seen, before it is decoded."""
    pixels = width * height
    if pixels > spec.max_pixels:
        message = f"expected at most {spec.max_pixels:,} pixels, got {width} x {height}; send a smaller image"
        raise Unreadable(Reason.TOO_MANY_PIXELS, message)
    if pixels * pixel_bytes > spec.max_decoded_bytes:
        message = (
            f"expected at most {spec.max_decoded_bytes:,} bytes to decode to, got {width} x {height} pixels of "
            f"{pixel_bytes} bytes; send a smaller image, or one with fewer channels or bits"
        )
        raise Unreadable(Reason.TOO_MANY_PIXELS, message)
    if not spec.resize and (width != spec.width or height != spec.height):
        message = (
            f"expected {spec.width} x {spec.height} pixels (width x height), got {width} x {height}; "
            "send that size, or fit a bundle that resizes (reconstream-train fit --height --width)"
        )
        raise Unreadable(Reason.WRONG_SIZE, message)


def _composed_on_black(image: cv2.typing.MatLike) -> cv2.typing.MatLike:
    """BGRA (H, W, 4), uint8 or uint16, to RGB (H, W, 3) of the same depth: colour * alpha / full, rounded."""
    if image.shape[2] != 4:
        # libpng drops a tRNS chunk that fits its image in no way; what is left is opaque.
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    scale = 1 / (65535 if image.dtype == np.uint16 else 255)
    blue, green, red, alpha = cv2.split(image)
    return cv2.merge([cv2.multiply(plane, alpha, scale=scale) for plane in (red, green, blue)])


def _oriented(image: cv2.typing.MatLike, orientation: int) -> cv2.typing.MatLike:
    """The image as it is to be seen; `orientation` 2 to 8 as in Exif 2.32, tag 0x0112."""
    if orientation > 4:
        image = cv2.transpose(image)
    # After the transposition: 6 = turned right, 8 = turned left, 7 = mirrored in the other diagonal.
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)
    return image if flip is None else cv2.flip(image, flip)
