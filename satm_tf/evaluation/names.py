"""The names of networks in results: the scheme that trained them and their own name."""

from __future__ import annotations

from typing import NamedTuple

UNSEEN = "holdout"
"""In place of a scheme, for a network that no scheme learnt from."""


class NetworkName(NamedTuple):
    """The name of a network in results, `<scheme>/<network>`.

    Example:
        >>> name = NetworkName.parse("satm/compact_vgg")
        >>> name.scheme, str(name)
        ('satm', 'satm/compact_vgg')
    """

    scheme: str  # that trained it, or `UNSEEN`; empty if the name has none
    network: str

    @classmethod
    def parse(cls, text: str) -> NetworkName:
        """Splits a name into its parts; one without a slash has no scheme."""
        scheme, _, network = text.rpartition("/") if text.count("/") == 1 else ("", "", text)
        return cls(scheme, network)

    @property
    def unseen(self) -> bool:
        """Whether no scheme learnt from it."""
        return self.scheme == UNSEEN

    def __str__(self) -> str:
        return f"{self.scheme}/{self.network}" if self.scheme else self.network
