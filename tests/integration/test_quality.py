"""What the shipped default is worth, on what is shipped: the short form of `make quality`."""

import json
from pathlib import Path

import pytest

from training.__main__ import main
from worker.core.errors import ExitCode

pytestmark = [pytest.mark.models, pytest.mark.timeout(180)]


def test_the_default_beats_pca_on_the_digits_2_and_8(tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    assert main(["benchmark", "--quick", "--presets", "default", "--json", str(path)]) == ExitCode.STOPPED
    content = json.loads(path.read_bytes())
    by_name: dict[str, dict[str, float]] = {}
    for result in content["results"]:
        by_name.setdefault(result["name"], {})[result["digit"]] = result["auroc"]
    default, pca = by_name["default"], by_name["pca"]
    assert set(default) == set(pca) == {"2", "8"}
    assert default["2"] > pca["2"]
    assert default["8"] > pca["8"]
    assert list(content["summary"]) == ["default", "pca", "1-nn"]
