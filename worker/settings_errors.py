"""Turns what pydantic says about wrong settings into one message that helps.

For every wrong setting: its flag and its variable, what was given, what is allowed. Rule: the value of a
secret is never shown, and neither is a value whose setting is not known.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import annotated_types
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from worker.core.errors import ConfigurationError

PREFIX = "RECONSTREAM_"

Location = tuple[str, ...]


class Wrong(NamedTuple):
    """One wrong setting; `given` is None where nothing was."""

    location: Location
    given: str | None
    allowed: str


class WrongSettings(ValueError):  # noqa: N818 - pydantic wants a ValueError
    """Raised by a model's validator for settings that do not fit together; locations are relative to the model."""

    def __init__(self, wrong: Sequence[Wrong]) -> None:
        super().__init__("; ".join(f"{'.'.join(one.location)}: {one.allowed}" for one in wrong))
        self.wrong = tuple(wrong)


def flag(location: Location) -> str:
    """The command line's name: ("kafka", "client_id") -> --kafka.client-id."""
    return "--" + ".".join(location).replace("_", "-")


def variable(location: Location) -> str:
    """The environment's name: ("kafka", "client_id") -> RECONSTREAM_KAFKA__CLIENT_ID."""
    return PREFIX + "__".join(location).upper()


def fields(cls: type[BaseModel], above: Location = ()) -> Iterator[tuple[Location, FieldInfo]]:
    """Every setting of a model and of the models in it."""
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, (*above, name))
        else:
            yield (*above, name), field


def explain_values(cls: type[BaseModel], error: ValidationError, program: str) -> ConfigurationError:
    """One message about every value that pydantic refused."""
    known = dict(fields(cls))
    wrong: dict[Location, Wrong] = {}
    for detail in error.errors(include_url=False):
        location = tuple(str(part) for part in detail["loc"])
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, WrongSettings):
            found = [one._replace(location=location + one.location) for one in cause.wrong]
        else:
            # The location of a choice within a field is longer than the field's.
            while location and location not in known and location[:-1] in known:
                location = location[:-1]
            field = known.get(location)
            given = None if detail["type"] == "missing" else _shown(field, detail["input"])
            found = [Wrong(location, given, _allowed(field, cause, detail["msg"]))]
        for one in found:
            wrong.setdefault(one.location, one)
    lines = [f"{program}: {_settings_are(len(wrong))} wrong."]
    for one in wrong.values():
        lines += [
            f"  {flag(one.location)}  (or {variable(one.location)})",
            f"      given:   {'nothing' if one.given is None else one.given}",
            f"      allowed: {one.allowed}",
        ]
    lines.append(f"All settings: {program} --help")
    return ConfigurationError("\n".join(lines))


def explain_command_line(cls: type[BaseModel], message: str, program: str) -> ConfigurationError:
    """One message about a command line, or a variable, that could not be taken apart."""
    unknown = message.partition("unrecognized arguments: ")[2]
    if unknown:
        given = [word.partition("=")[0] for word in unknown.split() if word.startswith("-")]
        flags = [flag(location) for location, _ in fields(cls)]
        # Words that are no flags may be the value of a misspelt --...password.
        text = "; ".join(name + did_you_mean(name, flags) for name in given) or "a word too many"
        message = f"unknown on the command line: {text}"
    else:
        message = message.removeprefix("error parsing CLI: ")
        # argparse repeats the value after these words.
        message = re.sub(r"(ignored explicit argument).*", r"\1", message)
    return ConfigurationError(f"{program}: {message}\nAll settings: {program} --help")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """` (did you mean X?)`, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f" (did you mean {close[0]}?)" if close else ""


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting's value must never be shown."""
    return SecretStr in (field.annotation, *get_args(field.annotation))


def _settings_are(number: int) -> str:
    return "1 setting is" if number == 1 else f"{number} settings are"


def _shown(field: FieldInfo | None, given: object) -> str:
    if field is None or is_secret(field) or isinstance(given, dict):
        return "a value that is not shown"
    return repr(given) if isinstance(given, str) else str(given)


def _allowed(field: FieldInfo | None, cause: object, message: str) -> str:
    """What a field takes, from its type and bounds; else what the validator said."""
    if isinstance(cause, ValueError):
        return str(cause)
    if field is None:
        return message
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if kind is not type(None)]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return "one of " + ", ".join(get_args(kind))
    words: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number"}
    word = next((words[kind] for kind in kinds if kind in words), None)
    if word is None:
        detail = message.removeprefix("Input ").removeprefix("String ").removeprefix("Value ")
        return f"{field.description or 'a value'}" + ("" if detail == "Field required" else f"; it {detail}")
    bounds = []
    for bound in field.metadata:
        match bound:
            case annotated_types.Ge(ge=least):
                bounds.append(f"at least {least}")
            case annotated_types.Gt(gt=above):
                bounds.append(f"above {above}")
            case annotated_types.Le(le=most):
                bounds.append(f"at most {most}")
    return " ".join(filter(None, [word, " and ".join(bounds)]))
