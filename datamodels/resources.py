"""Where the package's own files lie: beside it in a checkout, inside it when installed."""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).parent
SUFFIX = ".yaml"
_SENTENCE = re.compile(r".*?[.](?= [A-Z`]|$)")


def _folder(name: str) -> Path:
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


CONFIGS = _folder("configs")
KERNELS = _folder("kernels")


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    return {file.stem: file for file in sorted(CONFIGS.glob(f"*{SUFFIX}"), key=lambda file: file.stem)}


def purpose(config: Path) -> str:
    """What a shipped config is for: the first sentence of the comment that it begins with."""
    line = config.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    sentence = _SENTENCE.match(line)
    return sentence.group() if sentence else line
