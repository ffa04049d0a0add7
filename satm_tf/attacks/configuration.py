"""Immutable configuration with a name: what can be written down in YAML and made again from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from satm_tf.errors import unknown_name

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class Configured:
    """A frozen dataclass of one family, known by its name within that family.

    `class Attack(Configured, kind="attack")` founds a family; `class FGSM(Attack, name="fgsm")` joins it.

    Raises:
        ValueError: If a class takes a name that its family has already.
    """

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    members: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, kind: str = "", name: str = "", **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind, cls.members = kind, {}
        if name:
            if name in cls.members:
                raise ValueError(f"This {cls.kind} exists already; choose another name. Received: {name!r}")
            cls.name = name
            cls.members[name] = cls

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain values, lists and mappings."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The object that `get_config` described.

        Raises:
            ValueError: If the class lacks an option of the mapping; the message gives the nearest.
        """
        available = [field.name for field in fields(cls)]
        unknown = set(config) - set(available)
        if unknown:
            raise unknown_name(f"option of {cls.kind} {cls.name!r}", min(unknown), available)
        return cls(**config)

    @classmethod
    def get(cls, identifier: str | Mapping[str, Any] | Self, **config: Any) -> Self:
        """A member of the family from its name, or from a mapping with a "name"; a member passes through."""
        if isinstance(identifier, cls):
            return identifier
        given: dict[str, Any] = {"name": identifier} if isinstance(identifier, str) else {**identifier}  # type: ignore[dict-item]
        name = given.pop("name", None)
        if name not in cls.members:
            raise unknown_name(cls.kind, name, cls.members)
        return cls.members[name].from_config({**given, **config})  # type: ignore[attr-defined]


def serialize(configured: Configured) -> dict[str, Any]:
    """A mapping from which `get` makes an equal object, fit for YAML and JSON."""
    return {"name": configured.name, **configured.get_config()}


def _plain(value: Any) -> Any:
    if isinstance(value, Configured):
        return serialize(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
