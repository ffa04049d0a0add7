"""One wording for one mistake: a name that does not exist. Every room may use it; it uses none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, received: object, available: Iterable[str]) -> ValueError:
    """The error for a name that is not among those available, with the nearest of them.

    Args:
        kind: What the name stands for, such as `"attack"`.
        received: The name received.
        available: The names that exist.

    Returns:
        The error, for the caller to raise.

    Example:
        >>> unknown_name("attack", "fgms", ["fgsm", "step_ll"])
        ValueError("Unknown attack. Did you mean 'fgsm'? Available: fgsm, step_ll. Received: 'fgms'")
    """
    names = sorted(available)
    near = difflib.get_close_matches(str(received).lower(), names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    return ValueError(f"Unknown {kind}. {hint}Available: {', '.join(names) or 'none'}. Received: {received!r}")
