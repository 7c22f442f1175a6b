"""What a fit of one law to any table found: its numbers, what looked wrong, and what was counted how."""

from dataclasses import dataclass, field

from isoflop.recipe import Tree


@dataclass(frozen=True)
class OneLaw:
    """The result of `isoflop fit TABLE --law LAW`."""

    found: Tree
    """The law's numbers under the names of the command's JSON."""
    warnings: list[str] = field(default_factory=list)
    conventions: dict[str, str] = field(default_factory=dict)
