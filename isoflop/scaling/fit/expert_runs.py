"""A table of runs as the quantities that laws of experts speak of, and the rows that each form can use.

Own records and foreign tables name experts in several ways; here they become E (experts a token may choose from for
every one it uses), granularity, active parameters and compute. A row without experts is dense.
"""

import numpy as np

from isoflop.scaling.fit.expert_forms import Form, Runs
from isoflop.scaling.fit.isoflop import find_vertices, group_budgets
from isoflop.scaling.fit.table import Table

LAW = "law experts"
SAME = 0.02
"""Expert counts, shares and granularities closer than this (relative) count as one value."""
SAME_CUT = 0.5
"""The same for granularities: widths are rounded, so that of one family moves with the size, if small by half."""
SAME_TOKENS = 0.1
"""The same for token counts: steps are whole."""


def read_runs(table: Table) -> tuple[Runs, dict[str, str]]:
    """The quantities of the forms from a table's columns, NaN where unknown, and what was assumed.

    Raises:
        FitError: neither n_experts nor activated_share.
    """
    n_rows, conventions = table.n_rows, {}

    def column(name: str, default: float = np.nan) -> np.ndarray:
        values = table.columns[name] if table.has(name) else np.full(n_rows, np.nan)
        return np.where(np.isfinite(values), values, default)

    if not table.has("n_experts") and not table.has("activated_share"):
        raise table.missing(["n_experts"], LAW)
    experts, active, shared = column("n_experts", 1.0), column("n_active", 1.0), column("n_shared", 0.0)
    if not table.has("n_active") and not table.has("activated_share"):
        conventions["n_active"] = "assumed: 1 (no such column)"
    experts = np.where(experts < 1, 1.0, experts)
    share = column("activated_share")
    expansion = np.where(np.isfinite(share), 1 / share, (experts + shared) / (active + shared))
    expansion = np.where(experts <= active, 1.0, expansion) if table.has("n_experts") else expansion
    if table.has("n_params_active", "n_params_total", "n_params_non_embedding"):
        idle = column("n_params_total") - column("n_params_active")
        params = column("n_params_non_embedding") - idle
        conventions["N"] = "n_params_non_embedding less the experts that a token does not use"
    else:
        name = "n_params_active" if table.has("n_params_active") else "n_params"
        params = column(name)
        conventions["N"] = name
    granularity = column("granularity")
    if table.has("d_model", "d_expert"):
        granularity = np.where(np.isfinite(granularity), granularity, 2 * column("d_model") / column("d_expert"))
        conventions["G"] = "2 d_model / d_expert"
    compute = column("total_flops")
    if not np.isfinite(compute).all() and table.has("flops_per_token", "n_tokens"):
        compute = np.where(np.isfinite(compute), compute, column("flops_per_token") * column("n_tokens"))
    return Runs(params, column("n_tokens"), compute, expansion, granularity), conventions


def rows_for(
    form: Form, table: Table, runs: Runs, losses: np.ndarray
) -> tuple[Runs, np.ndarray, np.ndarray, list[str]] | str:
    """Rows that a form can use with losses, weights and notes, or the reason why there are too few."""
    weight, notes = table.weights(), []
    if form.name == "leverage":
        found = optima(table, runs, losses)
        if isinstance(found, str):
            return found
        runs, losses, notes = found
        weight = np.ones(len(losses))
    unknown = [name for name in form.needs if not np.isfinite(getattr(runs, name)).any()]
    if unknown:
        return f"{' and '.join(unknown)} missing: no such column, or an empty one"
    seen = runs.n_tokens[np.isfinite(runs.n_tokens)]
    if form.name == "clark" and seen.size and seen.max() > (1 + SAME_TOKENS) * seen.min():
        return f"n_tokens runs from {seen.min():.3g} to {seen.max():.3g}; this law holds at one count"
    dense = runs.n_experts <= 1 + SAME
    keep = np.isfinite(losses) & (losses > 0)
    for name in form.needs:
        values = getattr(runs, name)
        needed = ~dense if name == "granularity" else np.ones(len(losses), dtype=bool)
        keep &= np.where(needed, np.isfinite(values) & (values > 0), True)
    if form.name == "granularity":
        keep &= ~dense
        kinds = distinct_values(runs.n_experts[keep])
        if len(kinds) > 1:
            largest = max(kinds, key=lambda value: int(near(runs.n_experts[keep], value).sum()))
            notes.append(f"only the rows of {largest:.4g} experts per active one: the form knows no number of experts")
            keep &= near(runs.n_experts, largest)
    chosen = Runs(
        *(getattr(runs, name)[keep] for name in ("n_params", "n_tokens", "total_flops", "n_experts", "granularity"))
    )
    least = {"n_params": 2 if form.name == "clark" else 3, "n_tokens": 3, "total_flops": 3, "n_experts": 2}
    least["granularity"] = 1 if form.name == "leverage" else 2
    for name in form.needs:
        n = len(distinct_values(getattr(chosen, name), SAME_CUT if name == "granularity" else SAME))
        if n < least[name]:
            return f"{n} different values of {name}, at least {least[name]} are needed"
    n_free = len(form.constants) - len(undetermined(form, chosen))
    if keep.sum() <= n_free:
        return f"{int(keep.sum())} usable rows for {n_free} constants: add runs"
    if (~keep).any() and form.name != "granularity":
        notes.append(f"{int((~keep).sum())} rows left out: {', '.join(form.needs)} or the loss is missing")
    return chosen, losses[keep], weight[keep], notes


def optima(table: Table, runs: Runs, losses: np.ndarray) -> tuple[Runs, np.ndarray, list[str]] | str:
    """Best loss of each kind of model at each compute: the bottom of its IsoFLOP curve, or a row that is alone."""
    dense = runs.n_experts <= 1 + SAME
    if not dense.any() or dense.all():
        return "a leverage compares mixtures with dense runs: give the tables of both"
    if not np.isfinite(runs.total_flops).all():
        return "total_flops is missing"
    if np.isnan(runs.granularity[~dense]).any():
        return "granularity (or d_model and d_expert) of the mixtures is missing"
    cut = np.where(dense, 1.0, runs.granularity)
    optima: list[tuple[float, float, float, float]] = []  # C, E, G, loss
    left_out = 0
    filled = table.adding(total_flops=runs.total_flops)
    for experts in distinct_values(runs.n_experts):
        of_experts = near(runs.n_experts, experts)
        for granularity in distinct_values(cut[of_experts], SAME_CUT):
            rows = np.flatnonzero(of_experts & near(cut, granularity, SAME_CUT))
            part = filled.select(rows)
            if not part.first_of(("n_tokens", "n_params", "flops_per_token")):
                optima += [(float(runs.total_flops[i]), experts, granularity, float(losses[i])) for i in rows]
                continue
            budgets = group_budgets(part, LAW)
            wide = [budget for budget in budgets if budget.n_sizes >= 3]
            vertices = find_vertices(wide)[0]
            optima += [(v.total_flops, experts, granularity, v.loss) for v in vertices if v.used]
            left_out += sum(not v.used for v in vertices)
            for budget in (budget for budget in budgets if budget.n_sizes < 3):
                optima.append((budget.total_flops, experts, granularity, float(budget.loss.min())))
    flops, kinds, cuts, best = np.array(optima).T
    unknown = np.full(len(best), np.nan)
    notes = [f"{left_out} budgets left out: their optimum lies outside the tested sizes"] if left_out else []
    return Runs(unknown, unknown, flops, kinds, cuts), best, notes


def undetermined(form: Form, runs: Runs) -> dict[str, str]:
    """Constants that these runs cannot fix, and why."""
    mixture = runs.n_experts > 1 + SAME
    held: dict[str, str] = {}
    n_experts = len(distinct_values(runs.n_experts))
    if form.name in ("clark", "joint") and n_experts < 5:
        held |= dict.fromkeys(("E_start", "E_max"), f"{n_experts} expert counts, saturation needs five")
    if form.name == "granularity" and len(distinct_values(runs.granularity, SAME_CUT)) < 3:
        held["gamma"] = "fewer than three granularities"
    if form.name == "leverage":
        if len(distinct_values(runs.granularity[mixture], SAME_CUT)) < 3:
            held |= dict.fromkeys(("gamma", "beta"), "fewer than three granularities")
        if len(distinct_values(runs.n_experts[mixture])) < 3:
            held["A_start"] = "fewer than three activated shares"
        compute = runs.total_flops[mixture]
        if not compute.size or compute.max() < 10 * compute.min():
            held["a1"] = "the mixtures span less than a factor 10 in compute"
    return held


def near(values: np.ndarray, value: float, within: float = SAME) -> np.ndarray:
    """Which values lie within a factor 1 + `within` of one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.abs(np.log(values / value)) <= np.log1p(within) + 1e-9


def distinct_values(values: np.ndarray, within: float = SAME) -> list[float]:
    """Distinct finite values, those within a share of each other counted once (their median)."""
    found: list[list[float]] = []
    for value in np.sort(values[np.isfinite(values)]):
        if found and value <= found[-1][0] * (1 + within):
            found[-1].append(float(value))
        else:
            found.append([float(value)])
    return [float(np.median(group)) for group in found]
