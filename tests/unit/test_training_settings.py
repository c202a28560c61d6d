from pathlib import Path

import pytest

from training import settings
from training.__main__ import main
from training.roles import CALIBRATION_SIZE
from worker.core.errors import ConfigurationError, ExitCode


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECONSTREAM_TRAIN_EPOCHS", raising=False)
    monkeypatch.delenv("RECONSTREAM_TRAIN_CONFIG", raising=False)


def fit(*arguments: str) -> settings.Fit:
    parsed = settings.parse(["fit", *arguments])
    assert isinstance(parsed, settings.Fit)
    return parsed


def test_the_defaults() -> None:
    parsed = fit()
    assert parsed.preset == "default"
    assert (parsed.data, parsed.batch_size, parsed.epochs, parsed.calibration_size) == ("sample", 128, None, None)
    assert CALIBRATION_SIZE == 500
    assert (parsed.latent_size, parsed.threshold_method, parsed.rate, parsed.k) == (32, "percentile", 0.01, 3.0)


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "fit.toml"
    file.write_text('epochs = 5\nthreshold_method = "mean-plus-k-std"\nseed = 7\n')
    monkeypatch.setenv("RECONSTREAM_TRAIN_EPOCHS", "4")
    from_file = fit("--config", str(file), "--seed", "9")
    assert (from_file.epochs, from_file.threshold_method, from_file.seed) == (4, "mean-plus-k-std", 9)
    monkeypatch.setenv("RECONSTREAM_TRAIN_CONFIG", str(file))
    assert fit("--epochs", "3").epochs == 3
    assert fit().threshold_method == "mean-plus-k-std"


def test_variables_without_the_prefix_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIT", "JSON", "EPOCHS", "DATA"):
        monkeypatch.setenv(name, "elsewhere")
    assert fit().data == "sample"
    evaluate = settings.parse(["evaluate", "bundle"])
    assert isinstance(evaluate, settings.Evaluate)
    assert evaluate.json_file is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--epochs", "0"], ["epochs", "--epochs", "RECONSTREAM_TRAIN_EPOCHS", "'0'", "greater than or equal to 1"]),
        (
            ["--threshold-method", "best"],
            ["threshold_method", "'best'", "'percentile', 'mean-plus-k-std'", "'cost-weighted'"],
        ),
        (["--percentile", "100"], ["percentile", "'100'", "less than 100"]),
        (["-k", "0"], ["k (-k", "'0'", "greater than 0"]),
        (["--name", "Has Spaces"], ["name", "'Has Spaces'", "a-z"]),
        (["--height", "30", "--width", "32"], ["height", "'30'", "multiple of 4"]),
        (["--height", "32"], ["height 32", "width None", "both, or neither"]),
        (["--config", "nowhere.toml"], ["config", "nowhere.toml"]),
        (
            ["--percentile", "99", "--false-positive-rate", "0.01"],
            ["false_positive_rate and percentile", "one of them"],
        ),
        (
            ["--false-positive-rate", "0.1", "--false-alarms-per-day", "5", "--parts-per-day", "100"],
            ["false_positive_rate and false_alarms_per_day", "one of them"],
        ),
        (["--false-alarms-per-day", "5"], ["false_alarms_per_day 5.0", "parts_per_day None", "both, or neither"]),
        (["--parts-per-day", "5"], ["parts_per_day 5.0", "both, or neither"]),
        (["--false-alarms-per-day", "51", "--parts-per-day", "100"], ["51.0", "at most half"]),
        (
            ["--threshold-method", "best-f1", "--false-positive-rate", "0.1"],
            ["false_positive_rate", "best-f1", "aims at no rate", "conformal"],
        ),
        (["--cost-ratio", "0"], ["cost_ratio", "'0'", "greater than 0"]),
        (["--group-by", "part"], ["group_by", "'part'", "pattern:REGEX"]),
        (["--group-by", "pattern:("], ["group_by", "REGEX is none"]),
        (["--group-by", "pattern:part"], ["group_by", "one capture group", "this one has 0"]),
        (["--group-by", "csv:parts.csv"], ["group_by", "csv:FILE:COLUMN"]),
        (["--group-by", "time:-5"], ["group_by", "time:MINUTES"]),
    ],
)
def test_a_wrong_value_names_field_given_and_allowed(arguments: list[str], expected: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        fit(*arguments)
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "rate"),
    [
        ([], 0.01),
        (["--percentile", "99.9"], 0.001),
        (["--false-positive-rate", "0.02"], 0.02),
        (["--false-alarms-per-day", "5", "--parts-per-day", "2000"], 0.0025),
        (["--threshold-method", "mean-plus-k-std", "--percentile", "95"], 0.05),
    ],
)
def test_a_rate_can_be_said_in_three_ways(arguments: list[str], rate: float) -> None:
    assert fit(*arguments).rate == pytest.approx(rate)


@pytest.mark.parametrize("content", ["epochs = = 3", "learning = 3"])
def test_a_file_that_is_wrong_is_named_and_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "fit.toml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"fit\.toml|learning: there is no such setting"):
        fit("--config", str(file))


@pytest.mark.parametrize("command", [[], ["fit"], ["evaluate"], ["calibrate"], ["inspect"]])
def test_help_exits_with_0_and_shows_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == ExitCode.STOPPED
    assert "reconstream-train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], ExitCode.BAD_CONFIGURATION),
        (["fit", "--unknown"], ExitCode.BAD_CONFIGURATION),
        (["fit", "--epochs", "many"], ExitCode.BAD_CONFIGURATION),
        (["inspect", "no/such/bundle"], ExitCode.BAD_BUNDLE),
        (["evaluate", "no/such/bundle"], ExitCode.BAD_BUNDLE),
        (["calibrate", "no/such/bundle", "--data", "photos"], ExitCode.BAD_BUNDLE),
        (["calibrate", "no/such/bundle"], ExitCode.BAD_CONFIGURATION),
    ],
)
def test_what_is_wrong_has_its_exit_code_and_one_message(
    arguments: list[str], code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("reconstream-train:") + captured.err.count("error:") >= 1
    assert "Traceback" not in captured.err
