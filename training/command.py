"""What all subcommands of reconstream-train share: where values come from.

Rules: command line before environment (`RECONSTREAM_TRAIN_...`) before the file named by `--config`.
"""

import inspect
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from worker.core.errors import ConfigurationError

ENV_PREFIX = "RECONSTREAM_TRAIN_"
PROGRAM = "reconstream-train"


class Command(BaseSettings):
    """What all subcommands share: where values come from."""

    # A subcommand must be a BaseSettings with the prefix itself, or the environment is ignored; and the prefix
    # must count for aliases too, or `--json` would read the variable JSON.
    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_prefix_target="all", extra="forbid")

    config: Path | None = Field(
        None, description="TOML file with these settings, dashes written as underscores; none: no file"
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Take the source's indentation out of the docstring, which is the text of `--help`."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.__doc__ = inspect.cleandoc(cls.__doc__ or "")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, file; no `.env` and no secrets, there are none."""
        del dotenv_settings, file_secret_settings
        given = init_settings.init_kwargs if isinstance(init_settings, InitSettingsSource) else {}
        config = given.get("config") or env_settings().get("config")
        if config is None:
            return init_settings, env_settings
        return init_settings, env_settings, _toml(settings_cls, Path(config))


def _toml(settings_cls: type[BaseSettings], path: Path) -> TomlConfigSettingsSource:
    """The file's settings. pydantic-settings passes over a file that is not there; we do not."""
    if not path.is_file():
        raise ConfigurationError(f"config (--config, {ENV_PREFIX}CONFIG): there is no file '{path}'.")
    try:
        return TomlConfigSettingsSource(settings_cls, toml_file=path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigurationError(
            f"config (--config, {ENV_PREFIX}CONFIG): '{path}' is no TOML file: {error}."
        ) from error
