"""What can go wrong because of what a user gave us; everything else is a bug and keeps its traceback.

    ValueError
    `-- IsoflopError       the command line prints the message and exits with 2
        |-- RecipeError    a key, a value or a combination of values in a recipe
        |-- DataError      text, tokens or tables that can't be used
        |-- CheckpointError  a damaged, missing or foreign checkpoint
        |-- FitError       too few or unfit runs for the law that was asked for
        |-- PlanError      a plan that can't be met (budget, memory)
        |-- SandboxError   model-written code can't be contained here, or a job that can't be run
        `-- RequestError   a request that the serving engine can't take
            `-- BusyError  the same request can be taken later

OpticsError of isoflop.optics, which imports nothing of ours, is a RecipeError once a recipe is read (isoflop.recipe);
the command line treats what is left of it alike. A message names the key, the value, the rule and a way out.
"""

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator


class IsoflopError(ValueError):
    """Root of all errors that a user can cause."""


class RecipeError(IsoflopError):
    """A key, a value or a combination of values in a recipe."""


class DataError(IsoflopError):
    """Text, tokens or tables that cannot be used."""


class CheckpointError(IsoflopError):
    """A damaged, missing or foreign checkpoint."""


class FitError(IsoflopError):
    """Too few or unfit runs for the law that was asked for."""


class PlanError(IsoflopError):
    """A plan that cannot be met."""


class RequestError(IsoflopError):
    """A request that the serving engine cannot take."""


class BusyError(RequestError):
    """A request that can be taken later."""


class SandboxError(IsoflopError):
    """Code that a model wrote cannot be contained here, or a job that cannot be run."""


def did_you_mean(given: str, known: Iterable[str], otherwise: str) -> str:
    """The way out of an unknown name: the nearest known one as a question, or `otherwise` where none is near."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"did you mean {near[0]}?" if near else otherwise


@contextlib.contextmanager
def undamaged(what: str, kind: type[IsoflopError], way_out: str) -> Iterator[None]:
    """Around the reading of a file that we wrote, and that may have been cut off or edited: one error names it.

    Raises:
        kind: `what` is not JSON, or has lists, texts or nothing where its reader needs tables and numbers.
    """
    try:
        yield
    except IsoflopError:
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise kind(f"{what} is not JSON ({error}); {way_out}") from error
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError) as error:
        raise kind(f"{what} is damaged ({error}); {way_out}") from error
    except KeyError as error:
        raise kind(f"{what} is damaged (it has no {error}); {way_out}") from error
