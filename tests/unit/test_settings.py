import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from worker.core.errors import ConfigurationError, ExitCode
from worker.settings import ConnectionSettings, RunSettings, load, unknown_variables
from worker.settings_errors import fields, flag, is_secret, variable

PASSWORD = "hunter2-is-secret"
SASL = [
    "--kafka.security-protocol=SASL_SSL",
    "--kafka.sasl-mechanism=SCRAM-SHA-512",
    "--kafka.sasl-username=app",
    f"--kafka.sasl-password={PASSWORD}",
]


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No settings of whoever runs the tests: an empty working directory, environment and secrets directory."""
    for name in [name for name in os.environ if name.upper().startswith("RECONSTREAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    monkeypatch.setenv("RECONSTREAM_SECRETS_DIR", str(secrets))
    return secrets


def run(*arguments: str) -> RunSettings:
    return load(RunSettings, ["--bundle", "models/current", *arguments], "reconstream-worker run")


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        run(*arguments)
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION
    return str(caught.value)


def test_defaults() -> None:
    settings = run()
    assert settings.bundle == Path("models/current")
    assert settings.kafka.servers == ["127.0.0.1:9092"]
    assert settings.topics == ("images", "verdicts", "dead-letters")
    assert settings.localisation == "off"
    assert settings.carried_headers == ("traceparent", "tracestate")
    assert not settings.create_topics
    assert settings.max_dead_letter_ratio is None


def test_the_command_line_beats_environment_beats_env_file_beats_secrets_beats_default(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = []
    (clean / "reconstream_group_id").write_text("from-secrets\n")
    values.append(run().group_id)
    Path(".env").write_text("RECONSTREAM_GROUP_ID=from-file\n")
    values.append(run().group_id)
    monkeypatch.setenv("RECONSTREAM_GROUP_ID", "from-environment")
    values.append(run().group_id)
    values.append(run("--group-id", "from-flag").group_id)
    assert values == ["from-secrets", "from-file", "from-environment", "from-flag"]


def test_nested_settings_come_from_every_place(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean / "RECONSTREAM_KAFKA__SASL_PASSWORD").write_text(PASSWORD + "\n")
    Path(".env").write_text("RECONSTREAM_KAFKA__SASL_USERNAME=app\n")
    monkeypatch.setenv("RECONSTREAM_KAFKA__SECURITY_PROTOCOL", "sasl_plaintext")
    kafka = run("--kafka.sasl-mechanism", "plain").kafka
    assert kafka.client_options() == {
        "bootstrap_servers": ["127.0.0.1:9092"],
        "client_id": "reconstream",
        "reconnect_backoff_max_ms": 1000,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "app",
        "sasl_plain_password": PASSWORD,
    }


def test_the_secrets_directory_may_hold_what_is_not_ours(clean: Path) -> None:
    (clean / "keystore").write_bytes(b"\xff\xfe\x00")
    (clean / "folder").mkdir()
    (clean / "group_id").write_text("no prefix, not ours")
    assert run().group_id == "reconstream"


def test_a_secret_that_is_no_text_is_named_by_its_folder_only(clean: Path) -> None:
    (clean / "RECONSTREAM_KAFKA__SASL_PASSWORD").write_bytes(b"hunter2\xff")
    message = refused()
    assert str(clean) in message
    assert "hunter2" not in message


def test_a_secrets_directory_that_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONSTREAM_SECRETS_DIR", "no-such-folder")
    assert "RECONSTREAM_SECRETS_DIR" in refused()


def test_an_empty_value_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--group-id=").group_id == "reconstream"
    monkeypatch.setenv("RECONSTREAM_KAFKA__SASL_USERNAME", "")
    monkeypatch.setenv("RECONSTREAM_MAX_BATCH_SIZE", "")
    assert run().max_batch_size == 256


BAD = [
    ("max-batch-size", "0", "a whole number at least 1 and at most 4096"),
    ("max-batch-size", "4097", "a whole number at least 1 and at most 4096"),
    ("max-batch-size", "many", "a whole number"),
    ("max-batch-delay-ms", "nan", "a number at least 0"),
    ("max-in-flight-records", "255", "at least max-batch-size (256)"),
    ("max-in-flight-bytes", "2000000", "at least max-message-bytes (8388608)"),
    ("max-message-bytes", "-1", "at least 1024"),
    ("max-dead-letter-ratio", "0", "above 0 and at most 1"),
    ("delivery", "at_most_once", "one of at_least_once, exactly_once"),
    ("input-topic", "my topic", "match pattern '^[a-zA-Z0-9._-]+$'"),
    ("output-topic", "images", "must differ"),
    ("dead-letter-topic", "verdicts", "must differ"),
    ("group-id", "g" * 250, "at most 249 characters"),
    ("stream-from", "header:", "header:NAME"),
    ("stream-from", "topic", "key, partition, none, or header:NAME"),
    ("localisation", "on", "one of off, regions, maps"),
    ("log-format", "xml", "one of auto, json, console"),
    ("log-level", "loud", "one of debug, info, warning, error"),
    ("http-port", "65536", "at most 65535"),
    ("stall-timeout-s", "59", "at least 60"),
    ("drain-timeout-s", "soon", "a number at least 0"),
    ("kafka.bootstrap-servers", "kafka", "host:port"),
    ("kafka.bootstrap-servers", "kafka:9092,other:0", "host:port"),
    ("kafka.bootstrap-servers", "::1:9092", "[::1]:9092"),
    ("kafka.bootstrap-servers", "http://kafka:9092", "host:port"),
    ("kafka.security-protocol", "TLS", "one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
    ("kafka.sasl-mechanism", "GSSAPI", "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_a_bad_value_is_named_with_flag_variable_given_and_allowed(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable_name = "RECONSTREAM_" + name.replace(".", "__").replace("-", "_").upper()
    from_flag = refused(f"--{name}={value}")
    monkeypatch.setenv(variable_name, value)
    for message in (from_flag, refused()):
        assert message.startswith("reconstream-worker run: 1 setting is wrong.")
        assert f"--{name}  (or {variable_name})" in message
        assert f"given:   {value}" in message.replace("'", "")
        assert allowed in message


def test_a_transaction_that_would_outlive_its_timeout_is_refused() -> None:
    assert run("--commit-interval-ms=1001").commit_interval_ms == 1001
    assert run("--commit-interval-ms=1000", "--delivery=exactly_once").commit_interval_ms == 1000
    message = refused("--commit-interval-ms=1001", "--delivery=exactly_once")
    assert "--commit-interval-ms" in message
    assert "at most 1000 in exactly_once" in message


@pytest.mark.parametrize(("localisation", "more"), [("off", ()), ("regions", ()), ("maps", ("error-maps",))])
def test_there_is_a_map_topic_only_where_there_are_maps(localisation: str, more: tuple[str, ...]) -> None:
    settings = run(f"--localisation={localisation}")
    assert settings.topics == ("images", "verdicts", "dead-letters", *more)
    assert settings.maps_to == next(iter(more), None)


def test_a_map_topic_of_another_s_name_is_refused_where_there_are_maps() -> None:
    assert run("--map-topic=verdicts", "--localisation=regions").maps_to is None
    message = refused("--map-topic=verdicts", "--localisation=maps")
    assert "--map-topic" in message
    assert "must differ" in message


def test_a_missing_bundle_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"--bundle  \(or RECONSTREAM_BUNDLE\)\n +given: +nothing"):
        load(RunSettings, [], "reconstream-worker run")


def test_every_wrong_setting_is_in_one_message() -> None:
    message = refused(
        "--max-batch-size=0", "--http-port=x", "--kafka.client-id=" + 201 * "x", "--kafka.security-protocol=no"
    )
    assert message.startswith("reconstream-worker run: 4 settings are wrong.")
    for name in ("--max-batch-size", "--http-port", "--kafka.client-id", "--kafka.security-protocol"):
        assert name in message


@pytest.mark.parametrize("missing", ["sasl-mechanism", "sasl-username", "sasl-password"])
def test_sasl_needs_all_of_its_settings(missing: str) -> None:
    message = refused(*(argument for argument in SASL if missing not in argument))
    assert f"--kafka.{missing}" in message
    assert "the security protocol is SASL_SSL" in message
    assert PASSWORD not in message


def test_sasl_settings_without_sasl_are_a_mistake() -> None:
    message = refused(*SASL[1:])
    assert "3 settings are wrong" in message
    assert PASSWORD not in message


def test_certificate_files_must_be_there(tmp_path: Path) -> None:
    there = tmp_path / "ca.pem"
    there.write_text("-")
    message = refused(
        "--kafka.security-protocol=SSL", f"--kafka.ssl-ca-file={there}", "--kafka.ssl-certificate-file=gone.pem"
    )
    assert "1 setting is wrong" in message
    assert "--kafka.ssl-certificate-file" in message
    assert "given:   gone.pem" in message
    assert "No such file" in message


def test_a_key_needs_its_certificate(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("-")
    assert "--kafka.ssl-certificate-file" in refused("--kafka.security-protocol=SSL", f"--kafka.ssl-key-file={key}")
    assert "--kafka.ssl-key-file" in refused("--kafka.security-protocol=SSL", f"--kafka.ssl-key-password={PASSWORD}")


def test_certificate_files_without_tls_are_a_mistake(tmp_path: Path) -> None:
    assert "--kafka.ssl-ca-file" in refused(f"--kafka.ssl-ca-file={tmp_path}")


def test_tls_options(tmp_path: Path) -> None:
    for name in ("ca", "certificate", "key"):
        (tmp_path / name).write_text("-")
    options = run(
        *SASL,
        f"--kafka.ssl-ca-file={tmp_path / 'ca'}",
        f"--kafka.ssl-certificate-file={tmp_path / 'certificate'}",
        f"--kafka.ssl-key-file={tmp_path / 'key'}",
        "--kafka.ssl-key-password=other",
        "--no-kafka.ssl-check-hostname",
        "--kafka.bootstrap-servers=a:1, [::1]:2",
    ).kafka.client_options()
    assert options["bootstrap_servers"] == ["a:1", "[::1]:2"]
    assert options["ssl_cafile"] == str(tmp_path / "ca")
    assert options["ssl_certfile"] == str(tmp_path / "certificate")
    assert options["ssl_keyfile"] == str(tmp_path / "key")
    assert options["ssl_password"] == "other"
    assert options["ssl_check_hostname"] is False
    assert options["sasl_plain_password"] == PASSWORD


def test_secrets_are_masked_everywhere() -> None:
    settings = run(*SASL)
    for shown in (
        repr(settings),
        str(settings),
        repr(settings.masked()),
        repr(settings.kafka),
        settings.model_dump_json(),
    ):
        assert PASSWORD not in shown
    assert settings.masked()["kafka"]["sasl_password"] == "**********"
    assert settings.masked()["kafka"]["sasl_username"] == "app"
    assert isinstance(settings.kafka.sasl_password, SecretStr)


def test_wrong_neighbours_do_not_give_a_secret_away(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PASSWORD not in refused(*SASL, "--kafka.bootstrap-servers=nowhere", "--kafka.ssl-ca-file=gone.pem")
    monkeypatch.setenv("RECONSTREAM_KAFKA", f'{{"sasl_password": "{PASSWORD}", ')
    assert PASSWORD not in refused()
    monkeypatch.setenv("RECONSTREAM_KAFKA", f'{{"sasl_password": ["{PASSWORD}"]}}')
    assert PASSWORD not in refused()
    monkeypatch.setenv("RECONSTREAM_KAFKA", f'"{PASSWORD}"')
    assert PASSWORD not in refused()


@pytest.mark.parametrize("form", [["--kafka.sasl-pasword", PASSWORD], [f"--kafka.sasl-pasword={PASSWORD}"]])
def test_an_unknown_flag_is_named_with_the_likely_one_but_not_its_value(form: list[str]) -> None:
    message = refused(*form)
    assert "--kafka.sasl-pasword (did you mean --kafka.sasl-password?)" in message
    assert PASSWORD not in message


def test_a_word_too_many_is_refused() -> None:
    assert "a word too many" in refused("images")


def test_carried_headers() -> None:
    assert run("--carry-headers", "camera, shift,,camera,traceparent").carried_headers == (
        "traceparent",
        "tracestate",
        "camera",
        "shift",
    )


def test_unknown_variables_are_listed_with_the_likely_name(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONSTREAM_MAX_BATCHSIZE", PASSWORD)
    monkeypatch.setenv("RECONSTREAM_BUNDLE", "known")
    monkeypatch.setenv("RECONSTREAM_TRAIN_EPOCHS", "the other program's")
    Path(".env").write_text(f"RECONSTREAM_KAFKA__SASL_PASWORD={PASSWORD}\nOTHER=1\n")
    (clean / "RECONSTREAM_GROUPID").write_text(PASSWORD)
    assert unknown_variables([RunSettings]) == [
        "RECONSTREAM_MAX_BATCHSIZE in the environment is no setting of this program "
        "(did you mean RECONSTREAM_MAX_BATCH_SIZE?)",
        "RECONSTREAM_KAFKA__SASL_PASWORD in .env is no setting of this program "
        "(did you mean RECONSTREAM_KAFKA__SASL_PASSWORD?)",
        "RECONSTREAM_GROUPID in the secrets directory is no setting of this program "
        "(did you mean RECONSTREAM_GROUP_ID?)",
    ]


def test_another_programs_variables_do_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONSTREAM_MAX_BATCH_SIZE", "nonsense")
    assert load(ConnectionSettings, [], "tool").input_topic == "images"


def test_every_setting_is_described_and_bounded() -> None:
    for location, field in fields(RunSettings):
        assert field.description, location
        if field.annotation in (int, float, int | None, float | None):
            bounds = {type(bound).__name__ for bound in field.metadata}
            assert bounds & {"Ge", "Gt"}, location
            assert "Le" in bounds, location
        assert ("password" in location[-1]) == is_secret(field)


_PRINTABLE = st.text(st.characters(codec="ascii", exclude_characters="\x00", exclude_categories=["C"]), min_size=6)


@given(password=_PRINTABLE.filter(lambda text: text.strip() == text))
def test_no_password_appears_in_a_message(password: str) -> None:
    # A marker, so that a short password is not found in the message's own words.
    secret = f"@@{password}@@"
    message = refused(f"--kafka.sasl-password={secret}", "--kafka.sasl-username=u", "--max-batch-size=x")
    assert secret not in message


@given(value=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40))
def test_any_servers_are_taken_or_refused_with_a_message(value: str) -> None:
    try:
        servers = run(f"--kafka.bootstrap-servers={value}").kafka.servers
    except ConfigurationError as error:
        servers, message = [], str(error)
    else:
        message = ""
    assert bool(servers) != ("host:port" in message)
    for server in servers:
        assert 0 < int(server.rpartition(":")[2]) < 65536


def test_names() -> None:
    assert flag(("kafka", "client_id")) == "--kafka.client-id"
    assert variable(("kafka", "client_id")) == "RECONSTREAM_KAFKA__CLIENT_ID"
