"""Every setting of the worker's programs: the one place that reads the command line and the environment.

Order, first one wins: command line (`--max-batch-size`, `--kafka.bootstrap-servers`), environment
(`RECONSTREAM_MAX_BATCH_SIZE`, `RECONSTREAM_KAFKA__BOOTSTRAP_SERVERS`), the file `.env` in the working
directory, the secrets directory (files named like the variables, in RECONSTREAM_SECRETS_DIR or else
/run/secrets), default. An empty value counts as none.

Rules: a setting has a description, bounds, and a unit in its name where it has one; secrets are SecretStr;
what is wrong is reported all at once (worker.settings_errors), never with the value of a secret.
"""

import inspect
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from worker.settings_errors import (
    PREFIX,
    Wrong,
    WrongSettings,
    did_you_mean,
    explain_command_line,
    explain_values,
    fields,
    variable,
)
from worker.settings_kafka import KafkaSettings

# The variables of reconstream-train, which may stand in the same files.
TRAINING_PREFIX = "RECONSTREAM_TRAIN_"
DELIMITER = "__"
ENV_FILE = ".env"
SECRETS_DIR_VARIABLE = "RECONSTREAM_SECRETS_DIR"
DEFAULT_SECRETS_DIR = Path("/run/secrets")

KIB = 1 << 10
MIB = 1 << 20
MAX_TRANSACTION_MS = 1_000
# Trace context is carried over without being asked for.
TRACE_HEADERS = ("traceparent", "tracestate")
MAX_STREAM_HEADER = 128


def _check_stream(value: str) -> str:
    name = value.removeprefix("header:")
    if value in {"key", "partition", "none"} or (name != value and 0 < len(name) <= MAX_STREAM_HEADER):
        return value
    raise ValueError("key, partition, none, or header:NAME, for instance header:camera")


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


# What Kafka accepts as a topic's name.
Topic = Annotated[str, Field(min_length=1, max_length=249, pattern=r"^[a-zA-Z0-9._-]+$")]


class _SecretsDirectory(NestedSecretsSettingsSource):
    """Reads only the files that are ours: others in /run/secrets need not be text, nor small, nor readable."""

    def validate_secrets_path(self, path: Path) -> None:
        if not path.is_dir():
            raise SettingsError(f"{SECRETS_DIR_VARIABLE}: expected a folder, '{path}' is none.")

    @classmethod
    def load_secrets(cls, path: Path) -> dict[str, str]:
        try:
            return {file.name: file.read_text("utf-8").strip() for file in _secret_files(path)}
        except (OSError, UnicodeDecodeError) as error:
            # Not the error itself: a UnicodeDecodeError shows the bytes, which are the secret.
            raise SettingsError(f"a {PREFIX}* file in '{path}' cannot be read: {type(error).__name__}") from None


class CommonSettings(BaseSettings):
    """What every program of the worker has."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",  # another program's variables; misspelt ones are found by unknown_variables
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        hide_input_in_errors=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_exit_on_error=False,
        cli_show_env_vars=True,
    )

    log_format: Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)] = Field(
        default="auto", description="log lines as JSON or readable; auto: readable on a terminal"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        default="info", description="the least important log lines that are written"
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Makes the docstring fit for --help."""
        super().__pydantic_init_subclass__(**options)
        cls.__doc__ = inspect.cleandoc(cls.__doc__ or "")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Adds nested names to the secrets directory. The command line comes before all of these."""
        secrets = _SecretsDirectory(file_secret_settings, secrets_dir=secrets_directory())
        return init_settings, env_settings, dotenv_settings, secrets

    def masked(self) -> dict[str, Any]:
        """The effective configuration, for logs: JSON types, secrets replaced."""
        return self.model_dump(mode="json")


class ConnectionSettings(CommonSettings):
    """What every program has that talks to Kafka."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings, description="the connection to Kafka")
    input_topic: Topic = Field(default="images", description="topic of the images")
    output_topic: Topic = Field(default="verdicts", description="topic of the verdicts")
    start_timeout_s: float = Field(
        default=60, ge=1, le=3600, description="longest wait for Kafka at the start; then exit status 6"
    )


class RunSettings(ConnectionSettings):
    r"""Consume images, publish one verdict for each.

    Example:
      reconstream-worker run --bundle models/current --kafka.bootstrap-servers kafka-1:9092 \
          --input-topic images --output-topic verdicts --dead-letter-topic dead-letters
    """

    bundle: Path = Field(description="folder that reconstream-train wrote, or its 'current' link")
    reload_interval_s: float = Field(
        default=10,
        ge=0,
        le=86_400,
        description="time between looks for a new bundle behind that path; 0: only at SIGHUP",
    )
    dead_letter_topic: Topic = Field(default="dead-letters", description="topic of the records that cannot be read")
    group_id: str = Field(default="reconstream", min_length=1, max_length=249, description="consumer group")
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        default="at_least_once",
        description="at_least_once: a position is committed after its answer was acknowledged, a fault may repeat "
        "answers; exactly_once: answers and positions in one transaction, for read_committed readers",
    )

    localisation: Literal["off", "regions", "maps"] = Field(
        default="off",
        description="where an anomaly is: regions: its verdict names it; maps: its error map goes to the map topic "
        "too, as PNG. It passes through the model twice for that; off costs nothing",
    )
    map_topic: Topic = Field(default="error-maps", description="topic of the error maps, with --localisation maps")

    max_batch_size: int = Field(default=256, ge=1, le=4096, description="most images in a batch")
    max_batch_delay_ms: float = Field(
        default=10, ge=0, le=60_000, description="longest wait of an image for its batch"
    )
    max_age_ms: int | None = Field(
        default=None,
        ge=1,
        le=10**13,
        description="a record whose timestamp is older is answered 'expired' without the model; off if unset",
    )
    max_in_flight_records: int = Field(
        default=4096, ge=1, le=1_000_000, description="most records read and not committed; what a crash may repeat"
    )
    max_in_flight_bytes: int = Field(
        default=256 * MIB,
        ge=MIB,
        le=64 << 30,
        description="most bytes of records read and not answered, with a map's for each where there are maps",
    )
    max_message_bytes: int = Field(
        default=8 * MIB,
        ge=KIB,
        le=1 << 30,
        description="largest record read or written, uncompressed; one limit for all",
    )
    max_image_pixels: int = Field(
        default=50_000_000, ge=1, le=1 << 30, description="largest image decoded, by what its header claims"
    )
    commit_interval_ms: int = Field(
        default=200,
        ge=10,
        le=5_000,
        description="time between commits of positions; in exactly_once also how long verdicts stay invisible",
    )
    refusal_timeout_s: float = Field(
        default=60,
        ge=0,
        le=86_400,
        description="how long a running worker retries while Kafka refuses it (exit status 4), or while only the "
        "dead-letter or the map topic cannot be written (6)",
    )
    drain_timeout_s: float = Field(
        default=25, ge=0, le=3600, description="longest time to finish what is in flight when asked to stop"
    )
    # One step of the I/O thread may take 45 s while Kafka is away: an outage is no stall.
    stall_timeout_s: float = Field(
        default=180, ge=60, le=3600, description="longest time without progress before the watchdog ends the program"
    )

    stream_from: Annotated[str, AfterValidator(_check_stream)] = Field(
        default="key", description="what names an image's stream: key, partition, none, or header:NAME"
    )
    carry_headers: str = Field(
        default="", description="headers copied to the verdict beside traceparent and tracestate, comma separated"
    )

    create_topics: bool = Field(default=False, description="create missing topics instead of refusing to start")
    create_topics_partitions: int = Field(
        default=3,
        ge=1,
        le=10_000,
        description="partitions of a created input topic; the other topics get as many",
    )
    create_topics_replication_factor: int | None = Field(
        default=None, ge=1, le=100, description="replicas of created topics; the broker's default if unset"
    )

    max_dead_letter_ratio: float | None = Field(
        default=None, gt=0, le=1, description="stop with exit status 7 above this share of dead letters; off if unset"
    )
    dead_letter_window: int = Field(
        default=1000, ge=10, le=1_000_000, description="number of latest records that the share is taken of"
    )

    http_host: str = Field(default="127.0.0.1", min_length=1, description="address of /metrics, /livez and /readyz")
    http_port: int = Field(
        default=9108, ge=0, le=65_535, description="port of /metrics, /livez, /readyz; 0: any free one"
    )

    @property
    def topics(self) -> tuple[str, ...]:
        """Input, output and dead-letter topic, and that of the error maps where there are any."""
        maps = () if self.maps_to is None else (self.maps_to,)
        return self.input_topic, self.output_topic, self.dead_letter_topic, *maps

    @property
    def maps_to(self) -> str | None:
        """The topic of the error maps; None where there are none."""
        return self.map_topic if self.localisation == "maps" else None

    @property
    def carried_headers(self) -> tuple[str, ...]:
        """Names of all headers that go from the record to its verdict."""
        named = (name.strip() for name in self.carry_headers.split(","))
        return tuple(dict.fromkeys([*TRACE_HEADERS, *(name for name in named if name)]))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        wrong: list[Wrong] = []
        roles = ("input_topic", "output_topic", "dead_letter_topic", "map_topic")
        for place, (role, name) in enumerate(zip(roles, self.topics, strict=False)):
            if name in self.topics[:place]:
                wrong.append(Wrong((role,), name, "a topic of its own: those of the worker must differ"))
        if self.max_in_flight_records < self.max_batch_size:
            allowed = f"at least max-batch-size ({self.max_batch_size}), or no batch ever fills"
            wrong.append(Wrong(("max_in_flight_records",), str(self.max_in_flight_records), allowed))
        if self.max_in_flight_bytes < self.max_message_bytes:
            allowed = f"at least max-message-bytes ({self.max_message_bytes}), or the largest record never fits"
            wrong.append(Wrong(("max_in_flight_bytes",), str(self.max_in_flight_bytes), allowed))
        if self.delivery == "exactly_once" and self.commit_interval_ms > MAX_TRANSACTION_MS:
            # With the wait for the acknowledgements it must end before Kafka ends it, after 8 s.
            allowed = f"at most {MAX_TRANSACTION_MS} in exactly_once, where a transaction stays open for that long"
            wrong.append(Wrong(("commit_interval_ms",), str(self.commit_interval_ms), allowed))
        if wrong:
            raise WrongSettings(wrong)
        return self


SettingsT = TypeVar("SettingsT", bound=BaseSettings)


def load(cls: type[SettingsT], arguments: Sequence[str], program: str) -> SettingsT:
    """Read the settings of one program.

    Args:
        cls: its settings.
        arguments: its command line, without the program's name.
        program: its name, for --help.

    Raises:
        ConfigurationError: with one message about everything that is wrong.
        SystemExit: after --help.
    """
    try:
        # argparse takes a list for "parse these"; an empty tuple or None would mean something else.
        return cls(_cli_parse_args=list(arguments), _cli_prog_name=program)
    except ValidationError as error:
        raise explain_values(cls, error, program) from None
    except SettingsError as error:
        raise explain_command_line(cls, str(error), program) from None


def secrets_directory() -> Path | None:
    """The secrets directory: as RECONSTREAM_SECRETS_DIR says, or /run/secrets where there is one."""
    named = os.environ.get(SECRETS_DIR_VARIABLE)
    if named:
        return Path(named)
    return DEFAULT_SECRETS_DIR if DEFAULT_SECRETS_DIR.is_dir() else None


def _secret_files(directory: Path) -> list[Path]:
    return [file for file in sorted(directory.iterdir()) if file.name.upper().startswith(PREFIX) and file.is_file()]


def unknown_variables(programs: Iterable[type[BaseSettings]]) -> list[str]:
    """RECONSTREAM_* names in the environment, .env and the secrets directory that no program knows.

    Returns:
        one sentence each, with the likely name where there is one; never a value.
    """
    known = {SECRETS_DIR_VARIABLE}
    for program in programs:
        for location, _ in fields(program):
            # A model's own variable may hold all of it as JSON.
            known |= {variable(location[:depth]) for depth in range(1, len(location) + 1)}
    directory = secrets_directory()
    places: dict[str, Iterable[str]] = {
        "the environment": os.environ,
        ENV_FILE: dotenv_values(ENV_FILE),
        "the secrets directory": [file.name for file in _secret_files(directory)] if directory else [],
    }
    return [
        f"{name} in {place} is no setting of this program{did_you_mean(name.upper(), sorted(known))}"
        for place, names in places.items()
        for name in sorted(names)
        if name.upper().startswith(PREFIX)
        and name.upper() not in known
        and not name.upper().startswith(TRAINING_PREFIX)
    ]
