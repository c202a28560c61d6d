"""Ways of fitting by name. Import after select_backend()."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from training.presets import default, fast, tutorial
from training.presets.preset import Preset
from training.scores import POOLINGS

__all__ = ["PRESETS", "Preset", "pooled"]

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {module.PRESET.name: module.PRESET for module in (tutorial, default, fast)}
)


def pooled(preset: Preset, pooling: str) -> Preset:
    """The preset, judged by its reconstruction error alone, pooled in one of POOLINGS."""
    score = POOLINGS[pooling]()
    return replace(preset, name=f"{preset.name}, {pooling}", score=lambda *_: score)
