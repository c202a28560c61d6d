"""Ways of fitting by name. Import after select_backend()."""

from collections.abc import Mapping
from types import MappingProxyType

from training.presets import default, fast, tutorial
from training.presets.preset import Preset

__all__ = ["PRESETS", "Preset"]

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {module.PRESET.name: module.PRESET for module in (tutorial, default, fast)}
)
