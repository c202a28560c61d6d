"""Which images are localised, what their verdicts and maps say, and that nothing of it can cost a verdict."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.memory import PixelScorer, SilentTelemetry
from worker.answering import Answerer, Answers, Model
from worker.core.batching import Batch
from worker.core.images import ImageSpec
from worker.core.offsets import Lease, Part
from worker.core.progress import Progress
from worker.core.records import Headers, OutRecord, Record, TopicPartition, header, source_of
from worker.core.regions import ErrorMap, error_maps, map_record, region_of, without_value
from worker.core.verdicts import Judge, ModelName, Region, verdict_schema
from worker.localisation import TOGETHER, Localiser, Reconstruct

SIDE = 12
SPEC = ImageSpec(SIDE, SIDE, 1)
PARTITION = TopicPartition("images", 2)
CARRIED = ("traceparent", "content-type")
Images = NDArray[np.uint8]


def black(images: Images) -> NDArray[np.float32]:
    return np.zeros(images.shape, np.float32)


def squares(*boxes: tuple[int, int, int, int, int]) -> Images:
    """A black image, uint8 (SIDE, SIDE, 1), with squares: x, y, width, height, level."""
    image = np.zeros((SIDE, SIDE, 1), np.uint8)
    for x, y, width, height, level in boxes:
        image[y : y + height, x : x + width] = level
    return image


@pytest.mark.parametrize(
    ("boxes", "region"),
    [
        # Half of the peak is where half of the 5 x 5 pixels lie in the square.
        ([(3, 4, 5, 5, 255)], Region(3, 4, 5, 5, 1.0)),
        ([(0, 0, 6, 3, 255)], Region(0, 0, 6, 3, 1.0)),
        ([(0, 0, 12, 12, 51)], Region(0, 0, 12, 12, 0.04)),
        # The fainter of two is not named, nor does it stretch the rectangle.
        ([(0, 0, 5, 5, 100), (7, 7, 5, 5, 255)], Region(7, 7, 5, 5, 1.0)),
        ([], Region(0, 0, 12, 12, 0.0)),
    ],
)
def test_the_region_of_known_squares(boxes: Sequence[tuple[int, int, int, int, int]], region: Region) -> None:
    image = squares(*boxes)[np.newaxis]
    found = region_of(error_maps(image, black(image))[0])
    assert found == Region(region.x, region.y, region.width, region.height, found.peak)
    assert found.peak == pytest.approx(region.peak, rel=1e-6)


def test_colours_count_by_their_mean() -> None:
    image = np.zeros((1, 9, 9, 3), np.uint8)
    image[..., 0] = 255
    assert error_maps(image, black(image)) == pytest.approx(1 / 3)


VERDICT = OutRecord("verdicts", 2, b"cam", b"{}", [("traceparent", b"00"), ("content-type", b"image/jpeg")])
RECORD = Record("images", 2, 7, 1_700, b"cam", b"pixels", ())


def test_a_map_stands_where_its_verdict_does_and_names_its_record() -> None:
    found = map_record(RECORD, VERDICT, ErrorMap("maps", b"png", 0.1), "0123456789ab")
    assert found[:4] == ("maps", 2, b"cam", b"png")
    assert found.headers == [
        ("traceparent", b"00"),
        ("content-type", b"image/png"),
        ("reconstream-source-topic", b"images"),
        ("reconstream-source-partition", b"2"),
        ("reconstream-source-offset", b"7"),
        ("reconstream-source-timestamp-ms", b"1700"),
        ("reconstream-model-version", b"0123456789ab"),
        ("reconstream-map-peak", b"0.1"),
    ]
    assert source_of(found) == (PARTITION, 7)


def test_a_map_without_its_value_says_so() -> None:
    found = map_record(RECORD, VERDICT, ErrorMap("maps", b"png", 0.1), "0123456789ab")
    empty = without_value(found)
    assert (*empty[:3], empty.value) == (*found[:3], b"")
    assert empty.headers == [*found.headers, ("reconstream-value", b"omitted"), ("reconstream-value-bytes", b"3")]


class Clock:
    def monotonic(self) -> float:
        return 5.0

    def now_ms(self) -> int:
        return 1_700_000_000_000


def answer(
    values: Sequence[bytes],
    localiser: Callable[[SilentTelemetry], Localiser] | None,
    telemetry: SilentTelemetry | None = None,
    headers: Headers = (),
) -> Answers:
    """What a pixel model with the threshold 0.05 answers, which refuses images that begin with 255."""
    telemetry = telemetry or SilentTelemetry()
    judge = Judge(ModelName("pixels", "0123456789ab"), 0.05, np.linspace(0.01, 0.3, 30, dtype=np.float32))
    answerer = Answerer(
        Model(PixelScorer(32, poison=255), judge, SPEC, lambda: None, localiser and localiser(telemetry)),
        output_topic="verdicts",
        stream_of=lambda _: "line",
        carry_headers=CARRIED,
        clock=Clock(),
        telemetry=telemetry,
        progress=Progress("scoring", 0),
    )
    records = [
        Record("images", 2, 40 + number, 1_000, b"k%d" % number, value, headers)
        for number, value in enumerate(values)
    ]
    part = Part(Lease(PARTITION), records, 0, 40 + len(records), None)
    return answerer.answer(Batch([part], len(records), 5.0))


def localising(map_topic: str | None, reconstruct: Reconstruct = black) -> Callable[[SilentTelemetry], Localiser]:
    return lambda telemetry: Localiser(reconstruct, map_topic=map_topic, telemetry=telemetry)


def verdicts(answers: Answers) -> list[dict[str, Any]]:
    return [json.loads(record.value or b"") for record in answers.verdicts]


NORMAL = squares().tobytes()
FAULT = squares((3, 4, 5, 5, 250)).tobytes()
OTHER_FAULT = squares((4, 5, 6, 5, 200)).tobytes()
REFUSED = squares((0, 0, 12, 12, 255)).tobytes()
MIXED = (NORMAL, b"junk", FAULT, REFUSED, NORMAL, OTHER_FAULT)


def test_anomalies_and_no_others_have_a_region() -> None:
    answers = answer(MIXED, localising(None))
    found = verdicts(answers)
    for verdict in found:
        jsonschema.validate(verdict, verdict_schema())
    assert [verdict["anomaly"] for verdict in found] == [False, None, True, None, False, True]
    assert [number for number, verdict in enumerate(found) if verdict["region"] is not None] == [2, 5]
    assert found[2]["region"] == {"x": 3, "y": 4, "width": 5, "height": 5, "peak": pytest.approx((250 / 255) ** 2)}
    assert found[5]["region"] == {"x": 4, "y": 5, "width": 6, "height": 5, "peak": pytest.approx((200 / 255) ** 2)}
    assert answers.maps == {}


def test_each_anomaly_has_its_map() -> None:
    headers: Headers = [("traceparent", b"00"), ("content-type", b"application/octet-stream")]
    answers = answer(MIXED, localising("maps"), headers=headers)
    assert sorted(answers.maps) == [2, 5]
    for number, found in answers.maps.items():
        verdict = answers.verdicts[number]
        assert (found.topic, found.partition, found.key) == ("maps", verdict.partition, verdict.key)
        assert [value for name, value in found.headers if name == "content-type"] == [b"image/png"]
        assert header(found.headers, "traceparent") == b"00"
        assert source_of(found) == (PARTITION, 40 + number)
        peak = float(header(found.headers, "reconstream-map-peak") or b"nan")
        region = json.loads(verdict.value or b"")["region"]
        assert peak == region["peak"]
        levels = cv2.imdecode(np.frombuffer(found.value or b"", np.uint8), cv2.IMREAD_UNCHANGED)
        assert levels is not None
        box = levels[region["y"] : region["y"] + region["height"], region["x"] : region["x"] + region["width"]]
        assert box.max() == levels.max() == 255
        image = np.frombuffer(MIXED[number], np.uint8).reshape(1, SIDE, SIDE, 1)
        np.testing.assert_allclose(levels / 255 * peak, error_maps(image, black(image))[0], atol=peak / 500)


def test_off_every_verdict_is_what_it_is_without_its_region() -> None:
    """To the last byte; nothing is reconstructed."""
    off, on = answer(MIXED, None), answer(MIXED, localising("maps"))
    assert off.maps == {}
    for before, after in zip(off.verdicts, on.verdicts, strict=True):
        text = (after.value or b"").decode()
        region = json.dumps(json.loads(text)["region"], separators=(",", ":"))
        assert (before.value or b"").decode() == text.replace(f'"region":{region}', '"region":null')
        assert before._replace(value=None) == after._replace(value=None)
    never = answer([NORMAL] * 4, localising("maps", lambda _: pytest.fail("a normal image was reconstructed")))
    assert [verdict["region"] for verdict in verdicts(never)] == [None] * 4


class Failing:
    """Reconstructs to black, but for the calls that the test names: they raise, or give what is not finite."""

    def __init__(self, *, raises: Sequence[int] = (), strange: Sequence[int] = ()) -> None:
        self.raises, self.strange = raises, strange
        self.sizes: list[int] = []

    def __call__(self, images: Images) -> NDArray[np.float32]:
        call = len(self.sizes)
        self.sizes.append(len(images))
        if call in self.raises:
            raise RuntimeError("out of memory")
        return np.full(images.shape, np.nan, np.float32) if call in self.strange else black(images)


@pytest.mark.parametrize("failing", [Failing(raises=[1]), Failing(strange=[1])], ids=["raises", "nan"])
def test_what_cannot_be_reconstructed_costs_a_region_and_no_verdict(
    failing: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = SilentTelemetry()
    answers = answer([FAULT] * (2 * TOGETHER + 3), localising("maps", failing), telemetry)
    found = verdicts(answers)
    assert failing.sizes == [TOGETHER, TOGETHER, 3], "a few at a time"
    assert [verdict["anomaly"] for verdict in found] == [True] * len(found)
    without = list(range(TOGETHER, 2 * TOGETHER))
    assert [number for number, verdict in enumerate(found) if verdict["region"] is None] == without
    assert sorted(answers.maps) == [number for number in range(len(found)) if number not in without]
    assert telemetry.maps == {"failed": TOGETHER}
    assert len(caplog.records) == 1


def test_the_log_has_a_line_for_each_time_that_it_begins_to_fail(caplog: pytest.LogCaptureFixture) -> None:
    images = np.stack([squares((3, 4, 5, 5, 250))] * (6 * TOGETHER))
    advanced: list[None] = []
    localiser = Localiser(Failing(raises=[0, 1, 2, 4, 5]), map_topic=None, telemetry=SilentTelemetry())
    localiser.locate(images, lambda: advanced.append(None))
    assert [record.getMessage() for record in caplog.records] == [
        "anomalies have no region: RuntimeError: out of memory"
    ] * 2
    assert len(advanced) == 6, "each step is progress, or a large batch would pass for a hung thread"
