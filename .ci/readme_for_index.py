"""The README as a package index shows it: links and pictures of a checkout lead nowhere there.

Where pyproject.toml has a public address of the project, as `Source` of its `project.urls`, they lead there. Where it has none,
a link gives way to its words and the file's path, and a picture, with its caption, to nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
PICTURE = re.compile(r"\[?!\[(?P<words>[^\]]*)\]\((?P<path>[^)]*)\)(?:\]\([^)]*\))?")
CAPTIONED = re.compile(PICTURE.pattern + r"\n\n(?:\*[^*\n]+\*\n\n)?")
LINK = re.compile(r"(?<!!)\[(?P<words>[^\]!]*)\]\((?P<path>(?!https?://|#)[^)]*)\)")


def for_index(text: str, source: str | None = None) -> str:
    """The text of a README, in Markdown, without links that only a checkout has; source is the project's public address."""
    text = COMMENT.sub("", text)
    if source is None:
        return LINK.sub(lambda found: f"{found['words']} (`{found['path']}`)", CAPTIONED.sub("", text))
    text = PICTURE.sub(lambda found: f"![{found['words']}]({source}/raw/HEAD/{found['path']})", text)
    return LINK.sub(lambda found: f"[{found['words']}]({source}/blob/HEAD/{found['path']})", text)


class ReadmeForIndex(MetadataHookInterface):
    """Gives the built package `for_index` of README.md for its description."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the readme of the project's metadata."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text, source)}
