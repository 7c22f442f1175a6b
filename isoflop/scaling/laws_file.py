"""Where laws come from: a file of one's own fit, the name of a published law, or a dictionary of the same form."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.errors import PlanError
from isoflop.scaling.published import names, published_laws


def load_laws(laws: Mapping[str, Any] | str | Path) -> tuple[dict[str, Any], str, str]:
    """Laws, their name or path, and their SHA-256; `laws` is a dict, a laws file, or the name of a published law.

    Raises:
        PlanError: neither a file nor a known name, or a file that is not a laws file.
    """
    if isinstance(laws, Mapping):
        text = json.dumps(laws, sort_keys=True, default=lambda value: value.tolist())
        return dict(laws), str(laws.get("name", "laws")), hashlib.sha256(text.encode()).hexdigest()
    path = Path(laws)
    if str(laws) in names() or not path.is_file():
        found = published_laws(str(laws))
        return found, str(laws), hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    data = path.read_bytes()
    try:
        found = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"laws {path} is not JSON ({error}); write it with isoflop fit") from error
    if (
        not isinstance(found, dict)
        or found.get("law_set") != 1
        or found.get("scale") not in ("flops_per_token", "n_params")
    ):
        raise PlanError(
            f"laws {path} is not a set of laws (law_set, scale); fit a sweep with isoflop fit records.jsonl"
        )
    return found, str(laws), hashlib.sha256(data).hexdigest()
