"""What a PNG or a JPEG says of itself, read without decoding any of it.

Rules: any bytes give a `Header` or `Unreadable`; the work and the memory are bounded by the length of the bytes;
an image that ends too early is found here, and never reaches the decoder, which would fill in the rest. Nor do
chunks that a picture does not need: they have made the decoder allocate 2 GiB for 60 bytes.
"""

import re
import struct
import zlib
from typing import NamedTuple, NoReturn

from worker.core.errors import Reason, Unreadable

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"

_MAX_PNG_CHUNKS = 65_536
_MAX_JPEG_SEGMENTS = 4_096
_MAX_JPEG_SCANS = 100
"""Each scan costs a pass over all pixels and may be 31 bytes long; encoders write about ten."""

_IHDR = struct.Struct(">I4sIIBBBBBI")
_CHUNK = struct.Struct(">I4s")
_PNG_GREY, _PNG_RGB, _PNG_PALETTE, _PNG_GREY_ALPHA, _PNG_RGB_ALPHA = 0, 2, 3, 4, 6
_PNG_DEPTHS = {
    _PNG_GREY: (1, 2, 4, 8, 16),
    _PNG_RGB: (8, 16),
    _PNG_PALETTE: (1, 2, 4, 8),
    _PNG_GREY_ALPHA: (8, 16),
    _PNG_RGB_ALPHA: (8, 16),
}

_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHB")
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_FRAMES_DECODED = frozenset({0xC0, 0xC1, 0xC2})
_PROGRESSIVE = 0xC2
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_START, _END, _SCAN, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1

_TAG_ORIENTATION = 0x0112
_TYPE_SHORT = 3


class Header(NamedTuple):
    """An image before it is decoded.

    `width` and `height` are in pixels as stored; `orientation` (1 to 8, as EXIF numbers them) says how to turn
    them. `channels` is 1 (grey), 3 (RGB) or 4 (with alpha). `pixel_bytes` is what the decoder holds for a pixel.
    `transparent` is the grey level that stands for a transparent pixel. `encoded` is what to decode.
    """

    width: int
    height: int
    channels: int
    pixel_bytes: int
    orientation: int
    transparent: int | None
    encoded: bytes


def _damaged(message: str) -> NoReturn:
    raise Unreadable(Reason.NOT_AN_IMAGE, message)


def _truncated(what: str, size: int) -> NoReturn:
    raise Unreadable(
        Reason.TRUNCATED_IMAGE, f"the {what} ends too early, after {size:,} bytes; send it again, complete"
    )


def _check_crc(data: bytes, start: int, end: int) -> None:
    """Raise Unreadable when the PNG chunk from `start` to `end` does not match its CRC-32."""
    if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
        _damaged(f"the PNG is damaged: its chunk at byte {start} does not match its CRC; send it again")


def read_png(data: bytes) -> Header:
    """Read a PNG's header and walk its chunks up to IEND.

    `encoded` has only the chunks that make the picture (IHDR, PLTE, tRNS, IDAT, IEND): an animated PNG becomes
    its still image, which is its first frame. Format: W3C, Portable Network Graphics Specification, 3rd edition.

    Raises:
        Unreadable: NOT_AN_IMAGE or TRUNCATED_IMAGE.
    """
    size = len(data)
    if size < 33:
        _truncated("PNG", size)
    length, kind, width, height, depth, colour, compression, filtering, interlace, crc = _IHDR.unpack_from(data, 8)
    if length != 13 or kind != b"IHDR" or zlib.crc32(data[12:29]) != crc:
        _damaged("the PNG has no valid IHDR chunk; send it again")
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        _damaged(f"the PNG claims colour type {colour} with {depth} bits, which no PNG has")
    if not 0 < width < 2**31 or not 0 < height < 2**31:
        _damaged(f"the PNG claims {width} x {height} pixels, which no PNG has")

    has_alpha = colour in (_PNG_GREY_ALPHA, _PNG_RGB_ALPHA)
    has_data = False
    orientation, transparent = 1, None
    dropped: list[tuple[int, int]] = []
    start = 33
    for _ in range(_MAX_PNG_CHUNKS):
        if start + 12 > size:
            _truncated("PNG", size)
        length, kind = _CHUNK.unpack_from(data, start)
        end = start + 12 + length
        if end > size:
            _truncated("PNG", size)
        if kind == b"IDAT":
            has_data = True
        elif kind == b"IEND":
            break
        elif kind == b"tRNS" and not has_data:
            _check_crc(data, start, end)
            if colour in (_PNG_RGB, _PNG_PALETTE):
                has_alpha = True
            elif length == 2 and transparent is None:
                transparent = int.from_bytes(data[start + 8 : start + 10])
        elif kind == b"PLTE":
            _check_crc(data, start, end)
        elif kind == b"eXIf":
            _check_crc(data, start, end)
            orientation = _exif_orientation(data, start + 8, end - 4)
            dropped.append((start, end))
        elif kind.isalpha() and kind[0] & 0x20:
            dropped.append((start, end))
        else:
            _damaged(f"the PNG is damaged: its chunk at byte {start} has the unknown type {kind!r}; send it again")
        start = end
    else:
        _damaged(f"the PNG has more than {_MAX_PNG_CHUNKS} chunks; write it with larger ones")

    if transparent is not None and depth < 16:
        transparent = (transparent & ((1 << depth) - 1)) * (255 // ((1 << depth) - 1))
    channels = 4 if has_alpha else 1 if colour == _PNG_GREY else 3
    encoded = _without(data, dropped, end) if dropped else data
    pixel_bytes = channels * 2 if depth == 16 else channels
    return Header(width, height, channels, pixel_bytes, orientation, transparent, encoded)


def _without(data: bytes, dropped: list[tuple[int, int]], end: int) -> bytes:
    """`data` up to `end`, less the ranges in `dropped` (ascending, not overlapping)."""
    parts = []
    kept_from = 0
    for start, stop in dropped:
        parts.append(data[kept_from:start])
        kept_from = stop
    parts.append(data[kept_from:end])
    return b"".join(parts)


def read_jpeg(data: bytes) -> Header:
    """Read a JPEG's segments up to its first scan, and see that it has an end.

    Baseline, extended and progressive Huffman JPEGs of 8 bits with 1, 3 or 4 components (4: CMYK, which the
    decoder turns into RGB). The marker EOI must follow the scan; what comes after it is not looked at. Format:
    ITU-T T.81, annex B.

    Raises:
        Unreadable: NOT_AN_IMAGE, TRUNCATED_IMAGE, WRONG_CHANNELS, or TOO_MANY_PIXELS (for the passes over them).
    """
    size = len(data)
    width = height = components = orientation = frame = 0
    pos = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        if pos + 4 > size:
            _truncated("JPEG", size)
        lead, marker, length = _SEGMENT.unpack_from(data, pos)
        if lead != 0xFF or marker in (0x00, 0xFF):
            # Fill bytes and stray ones may stand between segments; decoders skip to the next marker.
            found = _MARKER.search(data, pos)
            if found is None:
                _truncated("JPEG", size)
            pos = found.start()
            continue
        if marker in _ALONE:
            pos += 2
            continue
        end = pos + 2 + length
        if marker in (_START, _END) or length < 2:
            _damaged(f"the JPEG is damaged: unexpected marker 0x{marker:02X} at byte {pos}; send it again")
        if end > size:
            _truncated("JPEG", size)
        if marker in _FRAMES:
            if frame:
                _damaged(f"the JPEG is damaged: a second frame header at byte {pos}; send it again")
            frame = marker
            width, height, components = _read_frame(data, pos, marker, length)
        elif marker == _APP1 and not orientation and data.startswith(b"Exif\x00\x00", pos + 4):
            orientation = _exif_orientation(data, pos + 10, end)
        elif marker == _SCAN:
            break
        pos = end
    else:
        _damaged(f"the JPEG has more than {_MAX_JPEG_SEGMENTS} segments before its picture; strip its metadata")

    if not frame or length < 3:
        _damaged("the JPEG is damaged: a scan without a frame header, or an empty one; send it again")
    if data.rfind(b"\xff\xd9", end) < 0:
        _truncated("JPEG", size)
    pixel_bytes = channels = 1 if components == 1 else 3
    if frame == _PROGRESSIVE or data[pos + 4] < components:
        pixel_bytes += 2 * components  # the decoder keeps the coefficients of every pixel
        scans = data.count(b"\xff\xda", pos)
        if scans > _MAX_JPEG_SCANS:
            message = f"the JPEG has {scans} scans, at most {_MAX_JPEG_SCANS} are decoded; write it as baseline"
            raise Unreadable(Reason.TOO_MANY_PIXELS, message)
    return Header(width, height, channels, pixel_bytes, orientation or 1, None, data)


def _read_frame(data: bytes, pos: int, marker: int, length: int) -> tuple[int, int, int]:
    """(width, height, components) of the frame header SOFn at `pos`, whose segment lies within `data`."""
    if marker not in _FRAMES_DECODED:
        _damaged(f"the JPEG is of process SOF{marker - 0xC0}; write it as baseline or progressive Huffman")
    if length < 8:
        _damaged(f"the JPEG is damaged: its frame header at byte {pos} is too short; send it again")
    precision, height, width, components = _FRAME.unpack_from(data, pos + 4)
    if precision != 8:
        _damaged(f"the JPEG has {precision} bits a sample, expected 8; write it with 8, or as a 16-bit PNG")
    if not width or not height:
        _damaged(f"the JPEG claims {width} x {height} pixels; write it with its size in the frame header")
    if components not in (1, 3, 4):
        message = f"the JPEG has {components} components, expected 1 (grey), 3 (colour) or 4 (CMYK)"
        raise Unreadable(Reason.WRONG_CHANNELS, message)
    if length != 8 + 3 * components:
        _damaged(f"the JPEG is damaged: its frame header at byte {pos} has a wrong length; send it again")
    return width, height, components


def _exif_orientation(data: bytes, start: int, end: int) -> int:
    """The orientation, 1 to 8, in the TIFF structure in `data[start:end]`; 1 where it has none, or is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2])
    if order is None or start + 8 > end:
        return 1
    magic, offset = struct.unpack_from(order + "HI", data, start + 2)
    entries = start + offset + 2
    if magic != 42 or entries > end:
        return 1
    (count,) = struct.unpack_from(order + "H", data, entries - 2)
    entry = struct.Struct(order + "HHIH")
    for at in range(entries, min(entries + 12 * count, end - 11), 12):
        tag, kind, values, value = entry.unpack_from(data, at)
        if tag == _TAG_ORIENTATION:
            return value if kind == _TYPE_SHORT and values == 1 and 1 <= value <= 8 else 1
    return 1
