"""The settings of the connection to Kafka: PLAINTEXT, TLS, and SASL with user and password."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from worker.settings_errors import Wrong, WrongSettings


def _servers(value: str) -> list[str]:
    return [server.strip() for server in value.split(",") if server.strip()]


def _check_servers(value: str) -> str:
    servers = _servers(value)
    for server in servers or [value]:
        host, colon, port = server.rpartition(":")
        is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
        if not (colon and host and is_port) or "/" in host:
            raise ValueError("host:port, several separated by commas, for instance kafka-1:9092,kafka-2:9092")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            raise ValueError("host:port, an IPv6 address in brackets, for instance [::1]:9092")
    return value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


Servers = Annotated[str, AfterValidator(_check_servers)]


class KafkaSettings(BaseModel):
    """How to reach Kafka, and how to prove who we are."""

    model_config = ConfigDict(frozen=True)

    client: Annotated[Literal["kafka-python", "confluent"], BeforeValidator(_lower)] = Field(
        default="kafka-python",
        description="library that reads and writes: kafka-python, or confluent (librdkafka; the extra "
        "reconstream[confluent])",
    )
    bootstrap_servers: Servers = Field(default="127.0.0.1:9092", description="brokers as host:port, comma separated")
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(_upper)
    ] = Field(default="PLAINTEXT", description="how connections are encrypted and authenticated")
    sasl_mechanism: Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None, BeforeValidator(_upper)] = (
        Field(default=None, description="how user and password are sent; needed with SASL_*")
    )
    sasl_username: str | None = Field(default=None, description="user, with SASL_*")
    sasl_password: SecretStr | None = Field(
        default=None, description="password, with SASL_*; better in the secrets directory than on the command line"
    )
    ssl_ca_file: Path | None = Field(
        default=None,
        description="PEM file of the authorities that sign the brokers' certificates; default: the system's",
    )
    ssl_certificate_file: Path | None = Field(
        default=None, description="PEM file of the client's certificate, for mutual TLS"
    )
    ssl_key_file: Path | None = Field(
        default=None, description="PEM file of the certificate's key, if that is a file of its own"
    )
    ssl_key_password: SecretStr | None = Field(default=None, description="password of the key file")
    ssl_check_hostname: bool = Field(default=True, description="whether a broker's certificate must bear its name")
    client_id: str = Field(
        default="reconstream", min_length=1, max_length=200, description="name in the brokers' logs and quotas"
    )
    group_instance_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=249,
        description="static membership: a name that no other worker of the group has; a restart within the session "
        "timeout (6 s) then moves no partition",
    )
    transactional_id_prefix: str = Field(
        default="reconstream",
        min_length=1,
        max_length=200,
        description="first part of transactional ids",
    )

    @property
    def servers(self) -> list[str]:
        """The brokers, one `host:port` each."""
        return _servers(self.bootstrap_servers)

    @property
    def uses_sasl(self) -> bool:
        """Whether connections authenticate with user and password."""
        return self.security_protocol.startswith("SASL_")

    @property
    def uses_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security_protocol.endswith("SSL")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        wrong: list[Wrong] = []
        for name in ("sasl_mechanism", "sasl_username", "sasl_password"):
            given = getattr(self, name)
            if self.uses_sasl and not (given.get_secret_value() if isinstance(given, SecretStr) else given):
                wrong.append(Wrong((name,), None, f"a value, as the security protocol is {self.security_protocol}"))
            elif given and not self.uses_sasl:
                allowed = f"nothing while the security protocol is {self.security_protocol}; or SASL_SSL as protocol"
                wrong.append(Wrong((name,), _shown(given), allowed))
        for name in ("ssl_ca_file", "ssl_certificate_file", "ssl_key_file"):
            path: Path | None = getattr(self, name)
            if path is None:
                continue
            if not self.uses_tls:
                allowed = f"nothing while the security protocol is {self.security_protocol}; or SSL or SASL_SSL as it"
                wrong.append(Wrong((name,), str(path), allowed))
            elif problem := _unreadable(path):
                wrong.append(Wrong((name,), str(path), f"a PEM file that can be read ({problem})"))
        if self.ssl_key_file and not self.ssl_certificate_file:
            wrong.append(Wrong(("ssl_certificate_file",), None, "the certificate of the key file that is given"))
        if self.ssl_key_password and not (self.ssl_key_file or self.ssl_certificate_file):
            wrong.append(Wrong(("ssl_key_file",), None, "the key file whose password is given"))
        if wrong:
            raise WrongSettings(wrong)
        return self

    def client_options(self) -> dict[str, object]:
        """Keyword arguments for any of kafka-python's clients. They hold the secrets in clear."""
        options: dict[str, object] = {
            "bootstrap_servers": self.servers,
            "client_id": self.client_id,
            "security_protocol": self.security_protocol,
            # With the client's own limit of 30 s it is back up to 27 s after the broker.
            "reconnect_backoff_max_ms": 1000,
        }
        if self.uses_sasl:
            assert self.sasl_password is not None  # noqa: S101 - _fits_together
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password.get_secret_value(),
            }
        if self.uses_tls:
            files = {
                "ssl_cafile": self.ssl_ca_file,
                "ssl_certfile": self.ssl_certificate_file,
                "ssl_keyfile": self.ssl_key_file,
            }
            options |= {name: str(path) for name, path in files.items() if path is not None}
            options["ssl_check_hostname"] = self.ssl_check_hostname
            if self.ssl_key_password is not None:
                options["ssl_password"] = self.ssl_key_password.get_secret_value()
        return options


def _unreadable(path: Path) -> str | None:
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def _shown(given: object) -> str:
    return "a value that is not shown" if isinstance(given, SecretStr) else str(given)
