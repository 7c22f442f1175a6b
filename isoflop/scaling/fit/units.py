"""Units of a table: what its columns must be counted in, and the marks of another unit, seen before anything is fitted.

Sizes and tokens are counted one by one, FLOPs too; a loss is in nats per token or bits per byte. What is surely wrong
is refused with its column, row, value and a way out; what only looks so is a warning.
"""

import numpy as np

from isoflop.columns import unit_in
from isoflop.errors import FitError
from isoflop.scaling.fit.table import LOSSES, Table

LEAST_COUNT = 1e4  # assumption: nobody fits laws to models of fewer parameters, or runs of fewer tokens
MOST_NATS = 12.5  # ln of 268,000: worse than guessing from the largest vocabularies
LEAST_FAILED = 5.0  # assumption, nats: a group of rows above the others and this may as well be runs that failed
LEAST_STEP = np.log(1.3)
UNIT_FACTORS = ((1.4, 1.5), (2.0, 4.5))  # bits and nats 1.44; nats per token and bits per byte 2.9 at 4.2 bytes a token


def check_units(table: Table) -> list[str]:
    """What may be in another unit, one sentence each. Raises FitError where it surely is."""
    checks = (_counts, _loss_range, _named_units, _bytes_per_token, _two_units)
    return [said for check in checks for said in check(table)]


def _counts(table: Table) -> list[str]:
    found = []
    for name in ("n_params", "flops_per_token", "n_tokens", "total_flops", "budget_flops"):
        if table.has(name) and (table.columns[name] <= 0).any():
            count = int((table.columns[name] <= 0).sum())
            found.append(f"{name} is 0 or below in {count} of {table.n_rows} rows: an integer that ran over its range?")
    for name, unit in (("n_params", "millions"), ("n_tokens", "millions or billions")):
        if not table.has(name) or "params" in table.conventions:  # our own records count one by one
            continue
        values = np.where(table.columns[name] > 0, table.columns[name], np.nan)
        if np.nanmin(values, initial=np.inf) < LEAST_COUNT:
            row, all_small = int(np.nanargmin(values)), np.nanmax(values) < LEAST_COUNT
            raise FitError(
                f"{table.cell(name, row)} must be a count of at least {LEAST_COUNT:g}; in {unit}? "
                + (f"map it with a factor, --map {name}=x*1e6" if all_small else "write every row as a count")
                + f", or leave it out with --where '{name}>1e4'"
            )
    return found


def _loss_range(table: Table) -> list[str]:
    found = []
    for name, most, why in (
        ("bits_per_byte", 8.0, "a byte has 8 bits; --map loss_nats=... for nats, perplexity=... for a perplexity"),
        ("loss_nats", MOST_NATS, "that is worse than guessing; --map perplexity=... for a perplexity"),
    ):
        if table.has(name) and (high := table.columns[name] > most).any():
            said = f"{table.cell(name, int(high.argmax()))} is above {most:g}, in another unit? {why}"
            if np.nanmedian(table.columns[name]) > most:
                raise FitError(said)
            found.append(f"{said} ({int(high.sum())} of {table.n_rows} rows)")
    if table.has("n_params", "n_tokens"):
        flops = 6 * table.columns["n_params"] * table.columns["n_tokens"]
        large = (flops > 1e18) & np.isfinite(flops)
        for name, below, above, other in (
            ("bits_per_byte", 0.0, 1.6, "loss_nats"),
            ("loss_nats", 1.3, np.inf, "bits_per_byte"),
        ):
            if not (table.has(name) and large.any()):
                continue
            median = float(np.nanmedian(table.columns[name][large]))
            if not below < median < above:
                found.append(
                    f"{name} has a median of {median:.3g} above 1e18 FLOPs, unusual for this unit: if it is another "
                    f"one, --map {other}=..."
                )
    return found


def _named_units(table: Table) -> list[str]:
    """A text column `unit`, `units` or `loss_unit` against the columns that are fitted."""
    column = next((name for name in ("loss_unit", "unit", "units") if name in table.columns), None)
    ours = table.first_of(LOSSES)
    if column is None or ours is None or "*" in table.conventions.get(ours, ""):
        return []
    named = [unit_in(text) for text in table.text(column).tolist()]
    named = ["loss_nats" if unit == table.conventions.get("unit") else unit for unit in named]
    wrong = next((row for row, unit in enumerate(named) if unit and unit != ours), None)
    if wrong is None:
        return []
    if len({*filter(None, named)}) > 1:
        way = f"fit one unit with --where {column}=..., or convert the others"
    else:
        way = f"--map {named[wrong]}=..., or state the conversion as a product"
    raise FitError(f"{table.cell(column, wrong)} is not {ours}, as the loss is mapped; {way}")


def _bytes_per_token(table: Table) -> list[str]:
    found = []
    ratio = table.columns.get("bytes_per_token")
    per_token = table.has("loss_nats") and not table.has("bits_per_byte")
    if ratio is not None and ratio.dtype.kind == "f" and per_token and np.nanmax(ratio) > 1.02 * np.nanmin(ratio):
        row = int(np.nanargmax(np.abs(ratio - ratio[0])))
        raise FitError(
            f"{table.cell('bytes_per_token', row)} differs from {ratio[0]:.4g} in another row: losses per token "
            "can't be compared; --map bits_per_byte=loss_nats/bytes_per_token*1.442695"
        )
    if table.has("bits_per_byte", "loss_nats"):
        ratio = table.columns["loss_nats"] / table.columns["bits_per_byte"]
        if np.nanmax(ratio) > 1.2 * np.nanmin(ratio):
            found.append(
                f"loss_nats / bits_per_byte runs from {np.nanmin(ratio):.3f} to {np.nanmax(ratio):.3f}: rows differ in "
                f"tokenizer, evaluation set or unit ({table.place(int(np.nanargmax(ratio)))}); fit bits_per_byte"
            )
    return found


def _two_units(table: Table) -> list[str]:
    """Losses that fall into two parallel groups over size and tokens: half in nats, half in bits, say.

    ln L is fitted by a smooth function of ln N and ln D plus one step for a group of rows; groups and fit are improved
    in turn. Where a step of at least a factor 1.3 leaves little else it is said; refused where it is that between two
    units, and the upper group does not look like runs that failed.
    """
    loss = table.first_of(LOSSES)
    if loss is None or not table.has("n_params", "n_tokens"):
        return []
    given = np.stack([table.columns[name] for name in ("n_params", "n_tokens", loss)])
    rows = np.flatnonzero((np.isfinite(given) & (given > 0)).all(axis=0))
    if len(rows) < 8:
        return []
    x, y, level = np.log(given[:, rows])
    x, y = x - x.mean(), y - y.mean()
    smooth = np.stack([np.ones_like(x), x, y, *((x * x, x * y, y * y) if len(rows) >= 14 else ())], axis=1)
    plain = level - smooth @ np.linalg.lstsq(smooth, level, rcond=None)[0]
    for first in (plain, level):
        order = np.argsort(first)
        cut = int(np.diff(first[order]).argmax())
        upper = first > first[order[cut]]
        for _ in range(20):
            design = np.column_stack([smooth, upper])
            constants = np.linalg.lstsq(design, level, rcond=None)[0]
            residual, step = level - design @ constants, float(constants[-1])
            moved = level - smooth @ constants[:-1] > step / 2
            if not moved.any() or moved.all() or (moved == upper).all():
                break
            upper = moved
        few = upper if 2 * upper.sum() <= len(upper) else ~upper
        lone = few.sum() < 2 and few is upper
        if step > LEAST_STEP and residual.std() < step / 8 and (plain**2).mean() > 9 * residual.var() and not lone:
            row, factor = int(few.argmax()), float(np.exp(step))
            said = (
                f"{table.cell(loss, rows[row])} and {int(few.sum())} of {len(rows)} rows are {factor:.3g} times "
                f"{'above' if few is upper else 'below'} the others of like size and tokens: in another unit, or on "
                "another text? convert them, or fit one kind with --where"
            )
            below = (level - step - residual)[few]
            perplexity = np.abs(np.log(np.maximum(level[few], 1e-9)) - below).max() < 0.1
            failed = few is upper and np.median(level[few]) > np.log(LEAST_FAILED) and residual[few].std() > step / 15
            if perplexity or (not failed and any(low < factor < high for low, high in UNIT_FACTORS)):
                raise FitError(said)
            return [f"{said}; or they are runs that failed"]
    return []
