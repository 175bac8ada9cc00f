"""Writes the pictures of the status page to docs/: `make page-pictures`."""

import base64
import tempfile
from pathlib import Path

from tests.page.browser import chromium
from tests.page.story import story
from tests.support.gateway import READY, SICK

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = {"page.png": "desk", "page-dark.png": "dark", "page-phone.png": "phone"}

if __name__ == "__main__":
    # A process of the browser that ends last may still write.
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        chromium(Path(profile)) as browser,
        story(READY, SICK, READY, SICK) as address,
    ):
        for name, screen in PICTURES.items():
            browser.open(address, screen)
            picture = browser.do("Page.captureScreenshot", format="png")["data"]
            (DOCS / name).write_bytes(base64.b64decode(picture))
