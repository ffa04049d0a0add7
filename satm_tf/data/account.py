"""What happened to every row of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from satm_tf.configurable import plural


@dataclass(frozen=True)
class Account:
    """Records for every row of a data set whether it is used and, if not, why.

    `used + left_out + missing + unreadable == rows` holds for every account.

    Args:
        rows: Rows that the tables, files or folders of the data set hold.
        used: Rows that became examples of one of the splits.
        mapped: How many used labels were mapped to another one, `{(from, to): count}`.
        left_out: How many rows were left out on purpose, `{reason: count}`.
        missing: Files that the tables name but that are not in the folder.
        unreadable: The files that cannot be used as images, `{path: reason}`.
        duplicates: The names of each image that has several, used or not. Used ones are all in the same split.

    Raises:
        ValueError: if the counts do not add up to `rows`.

    Example:
        >>> print(Account(rows=3, used=2, mapped={("35", "25-32"): 1}, left_out={"no age label": 1}))
        3 rows, 2 used
          mapped: '35' to '25-32': 1
          left out, no age label: 1
    """

    rows: int
    used: int
    mapped: Mapping[tuple[str, str], int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    duplicates: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        explained = self.used + sum(self.left_out.values()) + len(self.missing) + len(self.unreadable)
        if explained != self.rows:
            raise ValueError(
                "An account must explain every row: used + left out + missing + unreadable == rows. "
                f"Received: {self.used} + {sum(self.left_out.values())} + {len(self.missing)} + {len(self.unreadable)} "
                f"!= {self.rows}"
            )

    def __str__(self) -> str:
        lines = [f"{plural(self.rows, 'row')}, {self.used:,} used"]
        lines += [f"  mapped: {old!r} to {new!r}: {count:,}" for (old, new), count in self.mapped.items()]
        lines += [f"  left out, {reason}: {count:,}" for reason, count in self.left_out.items()]
        if self.missing:
            lines.append(f"  missing files: {len(self.missing):,} ({_some(self.missing)})")
        if self.unreadable:
            named = [f"{path}: {reason}" for path, reason in self.unreadable.items()]
            lines.append(f"  unreadable files: {len(self.unreadable):,} ({_some(named)})")
        if self.duplicates:
            named = [_some(names, shown=2, between=" = ") for names in self.duplicates]
            lines.append(f"  images under several names: {len(self.duplicates):,} ({_some(named)})")
        return "\n".join(lines)

    def without(
        self, unreadable: Mapping[str, str] = MappingProxyType({}), left_out: Mapping[str, int] = MappingProxyType({})
    ) -> Account:
        """The account after some used rows turn out unreadable (by path) or are left out (by reason)."""
        return replace(
            self,
            used=self.used - len(unreadable) - sum(left_out.values()),
            unreadable={**self.unreadable, **unreadable},
            left_out={**self.left_out, **left_out},
        )


def _some(names: tuple[str, ...] | list[str], shown: int = 3, between: str = ", ") -> str:
    return between.join([*names[:shown], "..."] if len(names) > shown else names)
