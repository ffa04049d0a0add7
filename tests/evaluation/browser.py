"""A real browser, without a window."""

from __future__ import annotations

import os
import shutil

import pytest

# Debian's, and those that GitHub's machines bring. No package on PyPI holds a browser itself.
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser() -> str:
    """Where the browser is; skips the test, or fails it under CI, which has to have one."""
    found = next((path for path in map(shutil.which, _NAMES) if path), None)
    if found:
        return found
    message = f"NO BROWSER: the report was not opened in any. Install one of {', '.join(_NAMES)}."
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
