"""For the API pages: docstrings say `Example:`, and the parser makes code of `>>>` lines under `Examples:` alone."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Reads the one as the other."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for everything that is read from the source."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
