"""Makes README.md's links work on PyPI, where there are no files beside it; the build runs this."""

import re
import tomllib
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def absolute(text: str, base: str) -> str:
    """Put a base address before each link to a file; a picture needs the file itself."""
    picture = re.compile(r"(!\[[^]]*\]\()(?!https?:)")
    text = picture.sub(rf"\1{base.replace('/blob/', '/raw/')}", text)
    return re.sub(r"\]\((?!https?:|#)", f"]({base}", text)


class Readme(MetadataHookInterface):
    """Sets the field `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Read README.md, and let its links lead to the files of this version's tag."""
        root = Path(self.root)
        project = tomllib.loads((root / "pyproject.toml").read_text())
        code = (root / project["tool"]["hatch"]["version"]["path"]).read_text()
        version = code.partition('__version__ = "')[2].partition('"')[0]
        base = f"{project['project']['urls']['Repository']}/blob/v{version}/"
        text = absolute((root / "README.md").read_text(), base)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
