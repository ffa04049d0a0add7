"""Named parts: immutable configurations that fit into YAML, and one error for unknown names."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

_Part = TypeVar("_Part")


def unknown_name(kind: str, received: object, available: Iterable[str]) -> ValueError:
    """The error for an unknown name, with the nearest available one.

    Args:
        kind: What the name refers to, such as `"attack"`.
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


def plural(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> plural(1, "epoch"), plural(1200, "image")
        ('1 epoch', '1,200 images')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def look_up(kind: str, name: object, available: Mapping[str, _Part]) -> _Part:
    """Looks up a part by name in a table.

    Args:
        kind: What the table holds, such as `"backbone"`.
        name: The name.
        available: The table.

    Raises:
        ValueError: If the table has no such name; the message gives the nearest.

    Example:
        >>> look_up("letter", "a", {"a": 1, "b": 2})
        1
    """
    if not isinstance(name, str) or name not in available:
        raise unknown_name(kind, name, available)
    return available[name]


@dataclass(frozen=True, kw_only=True)
class Configurable:
    """A frozen dataclass that belongs to a family and is registered there by name.

    `class Attack(Configurable, kind="attack")` founds a family; `class FGSM(Attack, name="fgsm")` joins it.

    Raises:
        ValueError: If another class of the family already has this name.
    """

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    members: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, kind: str = "", name: str = "", **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind, cls.members = kind, {}
        if name:
            taken = cls.members.get(name)
            # A notebook's cell that is run again defines the same class anew.
            if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"Another {cls.kind} already has this name; choose another. Received: {name!r}")
            cls.name = name
            cls.members[name] = cls

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as plain values, lists and mappings."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The object that `get_config` described.

        Raises:
            ValueError: If the class lacks an option of the mapping (the message gives the nearest), or if a value that
                must be a number has another type or is NaN.
        """
        available = [field.name for field in fields(cls)]
        unknown = set(config) - set(available)
        if unknown:
            raise unknown_name(f"option of {cls.kind} {cls.name!r}", min(unknown), available)
        for field in fields(cls):
            if field.name in config:
                _check_kind(f"{field.name} of {cls.kind} {cls.name!r}", field.type, config[field.name])
        return cls(**config)

    @classmethod
    def get(cls, identifier: str | Mapping[str, Any] | Self, **config: Any) -> Self:
        """A member of the family from its name or a mapping with a "name"; a member is returned unchanged."""
        if isinstance(identifier, cls):
            return identifier
        given: dict[str, Any] = {"name": identifier} if isinstance(identifier, str) else {**identifier}  # type: ignore[dict-item]
        member = look_up(cls.kind, given.pop("name", None), cls.members)
        return member.from_config({**given, **config})  # type: ignore[attr-defined]


def serialize(configurable: Configurable) -> dict[str, Any]:
    """A mapping for YAML or JSON from which `get` makes an equal object."""
    return {"name": configurable.name, **configurable.get_config()}


_NUMBERS = {
    "int": (numbers.Integral, "a whole number"),
    "float": (numbers.Real, "a number"),
    "bool": (bool, "true or false"),
}


def _check_kind(what: str, annotation: Any, value: Any) -> None:
    """Refuses a value that does not fit the annotation `int`, `float` or `bool`, with or without None."""
    name, _, optional = str(annotation).partition(" | ")
    if name not in _NUMBERS or optional not in ("", "None") or (value is None and optional):
        return
    kind, words = _NUMBERS[name]
    # Python's bool is a number, and NaN is a float that does not equal itself.
    if not isinstance(value, kind) or isinstance(value, bool) != (name == "bool") or value != value:
        raise ValueError(f"{what} must be {words}{', or null' if optional else ''}. Received: {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Configurable):
        return serialize(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
