"""What of librdkafka's adapters needs no broker: names, errors, tickets, a group's metadata."""

import builtins
import struct
import sys
from collections import deque
from typing import Any

import pytest
from confluent_kafka import KafkaError
from pydantic import SecretStr

from worker.adapters.clients import CONFLUENT, KAFKA_PYTHON, client
from worker.adapters.confluent_options import Log, librdkafka_options
from worker.adapters.confluent_tickets import ConfluentTicket, failure_of
from worker.adapters.confluent_transactions import METADATA_BEGINS, is_member
from worker.core.errors import ConfigurationError, DeliveryFailed
from worker.core.records import OutRecord
from worker.ports import RecordRefused
from worker.settings_kafka import KafkaSettings

VERDICT = OutRecord("verdicts", 0, b"k", b"verdict", [])
LETTER = OutRecord("letters", 1, b"k", b"letter", [])


class Message:
    """As librdkafka reports a record."""

    def __init__(self, record: OutRecord) -> None:
        self._record = record

    def topic(self) -> str:
        return self._record.topic

    def partition(self) -> int:
        return self._record.partition

    def key(self) -> bytes | None:
        return self._record.key

    def value(self) -> bytes | None:
        return self._record.value


class Sent:
    """Tickets of one producer, and its reports."""

    def __init__(self, ended_by: Exception | None = None) -> None:
        self.ended_by = ended_by
        self.under_way: deque[ConfluentTicket] = deque()

    def ticket(self, *records: OutRecord) -> ConfluentTicket:
        ticket = ConfluentTicket(records, lambda: None, lambda: self.ended_by, self.under_way)
        for record in records:
            ticket.delivery(record.topic).waiting += 1
        return ticket


def report(ticket: ConfluentTicket, record: OutRecord, code: int | None = None) -> None:
    error: Any = None if code is None else KafkaError(code)
    ticket.delivery(record.topic).report(error, Message(record))


def test_settings_in_librdkafka_s_names(tmp_path: Any) -> None:
    ca, certificate = tmp_path / "ca.pem", tmp_path / "certificate.pem"
    for file in (ca, certificate):
        file.write_text("PEM")
    settings = KafkaSettings(
        bootstrap_servers="a:1, b:2",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="user",
        sasl_password=SecretStr("secret"),
        ssl_ca_file=ca,
        ssl_certificate_file=certificate,
        ssl_check_hostname=False,
    )
    options = librdkafka_options(settings.client_options(), Log())
    assert options["bootstrap.servers"] == "a:1,b:2"
    assert options["security.protocol"] == "SASL_SSL"
    assert (options["sasl.mechanism"], options["sasl.username"], options["sasl.password"]) == (
        "SCRAM-SHA-512",
        "user",
        "secret",
    )
    assert options["ssl.ca.location"] == str(ca)
    assert options["ssl.key.location"] == options["ssl.certificate.location"] == str(certificate)
    assert options["ssl.endpoint.identification.algorithm"] == "none"
    assert options["reconnect.backoff.max.ms"] == 1000


def test_an_option_that_nobody_translated_is_not_lost_in_silence() -> None:
    with pytest.raises(KeyError, match="sasl_kerberos"):
        librdkafka_options({"bootstrap_servers": "a:1", "sasl_kerberos_service_name": "x"}, Log())


def test_the_log_keeps_which_topic_a_transaction_may_not_have() -> None:
    log = Log()
    log.log(40, "%s [%s] %s", "ADDPARTS", "p", 'T/1: Failed to add partition "v" [0] to transaction: Broker: Denied')
    not_attempted = KafkaError(KafkaError.OPERATION_NOT_ATTEMPTED).str()
    log.log(40, "%s [%s] %s", "ADDPARTS", "p", f'Failed to add partition "w" [0] to transaction: {not_attempted}')
    assert log.not_added == ("v", "Broker: Denied")


def test_a_client_that_is_not_installed_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert client(KAFKA_PYTHON).source is not client(CONFLUENT).source
    for name in [name for name in sys.modules if name.startswith("worker.adapters.confluent_")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *more: Any, **named: Any) -> Any:
        if name.startswith("confluent_kafka"):
            raise ModuleNotFoundError(name=name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"reconstream\[confluent\]"):
        client(CONFLUENT)


def test_a_ticket_is_settled_when_every_record_was_acknowledged() -> None:
    sent = Sent()
    ticket = sent.ticket(VERDICT, LETTER)
    report(ticket, VERDICT)
    assert not ticket.settled()
    report(ticket, LETTER)
    assert ticket.settled()
    assert not sent.under_way


@pytest.mark.parametrize(
    ("code", "step", "topic"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "refused", "letters"),
        (KafkaError._UNKNOWN_TOPIC, "refused", "letters"),
        (KafkaError._UNKNOWN_PARTITION, "refused", "letters"),
        (KafkaError.INVALID_PRODUCER_EPOCH, "fenced", None),
        (KafkaError._MSG_TIMED_OUT, "publish", "letters"),
    ],
)
def test_a_failure_names_its_step_and_the_topic_that_alone_fails(code: int, step: str, topic: str | None) -> None:
    ticket = Sent().ticket(VERDICT, LETTER)
    report(ticket, VERDICT)
    report(ticket, LETTER, code)
    with pytest.raises(DeliveryFailed) as caught:
        ticket.settled()
    assert (caught.value.step, caught.value.topic) == (step, topic)


def test_where_more_fails_than_a_topic_none_is_named() -> None:
    ticket = Sent().ticket(VERDICT, LETTER)
    report(ticket, LETTER, KafkaError._MSG_TIMED_OUT)
    with pytest.raises(DeliveryFailed) as caught:
        ticket.settled()
    assert caught.value.topic is None


def test_what_fails_as_a_consequence_tells_of_the_cause() -> None:
    sent = Sent()
    first, second = sent.ticket(VERDICT), sent.ticket(LETTER)
    report(first, VERDICT, KafkaError._PURGE_QUEUE)
    report(second, LETTER, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(DeliveryFailed) as caught:
        first.settled()
    assert (caught.value.step, caught.value.topic) == ("refused", "letters")


def test_where_no_record_tells_the_producer_is_asked() -> None:
    sent = Sent(DeliveryFailed("fenced", "taken over"))
    ticket = sent.ticket(VERDICT)
    report(ticket, VERDICT, KafkaError._PURGE_INFLIGHT)
    with pytest.raises(DeliveryFailed, match="taken over"):
        ticket.settled()


def test_of_a_batch_that_is_too_large_the_largest_record_is_named() -> None:
    large = LETTER._replace(value=b"larger than the other")
    ticket = Sent().ticket(LETTER, large)
    for record in (LETTER, large):
        report(ticket, record, KafkaError.MSG_SIZE_TOO_LARGE)
    with pytest.raises(RecordRefused) as caught:
        ticket.settled()
    assert caught.value.record is large


def test_a_refusal_by_the_client_itself_comes_after_what_was_sent_before() -> None:
    ticket = Sent().ticket(VERDICT)
    ticket.refuse(RecordRefused(LETTER, "too large"))
    assert not ticket.settled()
    report(ticket, VERDICT)
    with pytest.raises(RecordRefused):
        ticket.settled()


def test_a_size_that_no_record_is_known_for() -> None:
    failure = failure_of(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), None)
    assert isinstance(failure, DeliveryFailed)
    assert failure.step == "size"


def metadata(generation: int, member: bytes) -> bytes:
    return METADATA_BEGINS + struct.pack("=i", generation) + b"group\0" + member + b"\0" + b"\1"


def test_who_is_a_member_of_the_group() -> None:
    assert is_member(metadata(0, b"me"))
    assert not is_member(metadata(-1, b"me"))
    assert not is_member(metadata(3, b""))
    with pytest.raises(NotImplementedError):
        is_member(b"CGMDv3:" + bytes(20))
