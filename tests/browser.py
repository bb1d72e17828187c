"""Pages tried in headless Chromium, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


def dom_after(page: str, script: str, folder: Path, fragment: str = "") -> str:
    """The page's elements after `script` has run in it, opened from disk."""
    path = folder / "page.html"
    path.write_text(page.replace("</html>", f"<script>{script}</script></html>"))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), *options, "--virtual-time-budget=4000", "--dump-dom", path.as_uri() + fragment]
    for timeout in (40, 80):  # a browser on a busy machine now and then does not end
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=True).stdout
        except subprocess.TimeoutExpired:
            continue
    pytest.skip("Chromium does not end here")
