"""Whether two sides were measured on the same held-out text: what `compare` asks before it says anything.

Records and laws carry a hash of the text itself and the bytes that were measured (isoflop.scaling.fit.checks.held_out).
Bits per byte of two texts differ by a factor that looks like a large multiplier of compute, whatever was changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from isoflop.errors import PlanError
from isoflop.scaling.laws import Laws


@dataclass(frozen=True)
class HeldOut:
    """The text that all sides were measured on."""

    sha256: str | None
    n_bytes: int | None
    stated: bool
    """Not every side says which text it was: that it is the same is the word of whoever asked (--same-held-out)."""


def check_held_out(sides: Mapping[str, tuple[str, int | None]], *, stated: bool) -> HeldOut:
    """The text that all sides were measured on; a side is a name with hash and bytes, empty where it does not say.

    `stated`: whoever asks vouches for it where a side does not say; against what the sides do say this has no force.

    Raises:
        PlanError: another text or another part of it, or a side that does not say while nobody vouches.
    """
    hashes, sizes = {told[0] for told in sides.values()} - {""}, {told[1] for told in sides.values()} - {None}
    if len(hashes) > 1 or len(sizes) > 1:
        texts = " and ".join(f"{name} on {_shown(*told)}" for name, told in sides.items())
        raise PlanError(
            f"losses on different held-out text cannot be compared: {texts}; measure both sweeps on the same documents "
            '(sources with split = "valid") and the same part of them (validate.max_tokens = 0 takes all)'
        )
    silent = [name for name, told in sides.items() if not all(told)]
    if silent and not stated:
        raise PlanError(
            f"{' and '.join(sides)} cannot be compared: held_out_sha256 and held_out_bytes, which say on which text "
            f"the runs were measured, are not in {' and '.join(silent)}; if it was the same text, add --same-held-out"
        )
    return HeldOut(next(iter(hashes), None), next(iter(sizes), None), bool(silent))


def check_tokenizers(laws_a: Laws, laws_b: Laws) -> None:
    """Raises PlanError for nats per token of two tokenizers, which are different units."""
    a, b = (
        laws.conventions.get("tokenizer_sha256") or laws.conventions.get("tokenizer") or "" for laws in (laws_a, laws_b)
    )
    if laws_a.loss == "loss_nats" and a and b and a != b:
        raise PlanError(
            f"nats per token of two tokenizers cannot be compared: {a[:12]} of A ({laws_a.name}) and {b[:12]} of "
            f"B ({laws_b.name}); fit bits_per_byte"
        )


def _shown(text: str, size: int | None) -> str:
    return f"{text[:12] if text else 'text not stated'} ({f'{size:,} bytes' if size else 'size not stated'})"
