"""Which files belong together: frames of one part, images of one day.

Images of one group are alike, so n of them say less than n independent ones: groups are split and counted as wholes.
A rule is `folder` (the file's folder), `pattern:REGEX` (what its one capture group finds in the file's name),
`csv:FILE:COLUMN` (a table with a header; its column `file` has the path below the data's folder) or `time:MINUTES`
(the file's modification time, UTC, in windows of so many minutes; 1440 is a day; copying may change that time).
"""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.core.errors import ConfigurationError

KINDS = "`folder`, `pattern:REGEX` with one capture group, `csv:FILE:COLUMN` or `time:MINUTES`"


def check_group_by(rule: str) -> str:
    """The rule, where it is one.

    Raises:
        ValueError: it is none; the message says what is allowed.
    """
    kind, _, rest = rule.partition(":")
    match kind:
        case "folder" if not rest:
            return rule
        case "pattern" if rest:
            _pattern(rest)
            return rule
        case "csv" if all(rest.rpartition(":")):
            return rule
        case "time" if _minutes(rest):
            return rule
    raise ValueError(KINDS)


def follows_time(rule: object) -> bool:
    """Whether the numbers of the groups that a rule makes follow time."""
    return isinstance(rule, str) and rule.startswith("time:")


def group_files(rule: str, root: Path, files: Sequence[Path]) -> list[str]:
    """The name of each file's group, in the order of the files.

    Args:
        rule: as check_group_by() allows.
        root: the data's folder.
        files: below it.

    Raises:
        ConfigurationError: the rule says nothing about some of them, or its table cannot be read.
    """
    kind, _, rest = rule.partition(":")
    if kind == "folder":
        return [file.parent.relative_to(root).as_posix() for file in files]
    if kind == "time":
        seconds = 60 * _minutes(rest)
        # Of equal lengths, so that their order as text is that of time.
        return [f"{math.floor(file.stat().st_mtime / seconds):012d}" for file in files]
    if kind == "pattern":
        found = [_pattern(rest).search(file.name) for file in files]
        names = [match and match[1] for match in found]
    else:
        table = _table(rest)
        names = [table.get(file.relative_to(root).as_posix()) for file in files]
    missing = [file for file, name in zip(files, names, strict=True) if not name]
    if missing:
        raise ConfigurationError(
            f"group_by (--group-by): '{rule}' says nothing about {len(missing)} of {len(files)} files, such as "
            f"'{missing[0].relative_to(root)}'; expected a group for every file."
        )
    return [str(name) for name in names]


def refuse_group_by(rule: str | None, data: str) -> None:
    """Refuse a rule for what is no folder.

    Raises:
        ConfigurationError: there is one.
    """
    if rule is not None:
        raise ConfigurationError(
            f"group_by (--group-by): '{rule}' was given; it is for folders of files. In an .npz such as '{data}' "
            "the groups are an array called groups, a number or text for each of the images."
        )


def number_groups(names: Sequence[str] | NDArray[np.str_]) -> NDArray[np.int64]:
    """Names as numbers from 0, (n,)."""
    return np.unique(np.asarray(names, np.str_), return_inverse=True)[1].astype(np.int64)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"{KINDS}; this REGEX is none: {error}") from error
    if pattern.groups != 1:
        raise ValueError(f"{KINDS}; this one has {pattern.groups}")
    return pattern


def _minutes(text: str) -> float:
    """The number, or 0 where it is none."""
    try:
        minutes = float(text)
    except ValueError:
        return 0.0
    return minutes if 0 < minutes < math.inf else 0.0


def _table(rest: str) -> dict[str, str]:
    """Group by file."""
    name, _, column = rest.rpartition(":")
    try:
        with Path(name).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if not {"file", column} <= set(rows.fieldnames or ()):
                raise ConfigurationError(
                    f"group_by (--group-by): '{name}' has the columns {', '.join(rows.fieldnames or ()) or 'none'}; "
                    f"expected file and {column}."
                )
            return {row["file"]: row[column] for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(
            f"group_by (--group-by): '{name}' cannot be read as a CSV table: {error}."
        ) from error
