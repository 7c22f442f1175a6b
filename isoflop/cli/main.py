"""The command line: every command in the order of the data flow, and exit codes. It prints through cli/console.py."""

import errno
import inspect
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from cyclopts import App, CycloptsError, Parameter

from isoflop.cli import align, convert, corpus, evaluate, imaging, keys, launch, optics, scaling, serving, sweep, train
from isoflop.cli.arguments import check, converted, sentence
from isoflop.cli.console import print_rows, say
from isoflop.errors import IsoflopError, RecipeError

Command = Callable[..., Any]

COMMANDS: dict[str, Command] = {
    "corpus build": corpus.corpus_build,
    "tokens": corpus.tokens,
    "inspect": train.inspect,
    "ladder": sweep.ladder,
    "sweep": sweep.sweep,
    "fit": scaling.fit,
    "predict": scaling.predict,
    "next": sweep.next_,
    "plan": scaling.plan,
    "train": train.train,
    "extend": train.extend,
    "passkey": train.passkey,
    "sft": align.sft,
    "dpo": align.dpo,
    "reward": align.reward,
    "align demo": align.align_demo,
    "generate": serving.generate,
    "chat": serving.chat,
    "eval": evaluate.evaluate,
    "judge": evaluate.judge,
    "score": scaling.score,
    "export": convert.export,
    "import": convert.import_,
    "compare": scaling.compare,
    "report": scaling.report,
    "demo": scaling.demo,
    "optics inspect": optics.optics_inspect,
    "optics demo": optics.optics_demo,
    **{f"imaging {name}": stage for name, stage in imaging.STAGES.items()},
    "launch": launch.launch,
    "keys": keys.keys,
    "schema": keys.schema,
}
GROUPS = {
    "corpus": "Raw text -> clean corpus.",
    "align": "From a base model to an assistant.",
    "optics": "The photonic tensor core.",
    "imaging": "The second workload: objects behind a scattering slab.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 2 bad input (one message), 130 stopped by the user after saving."""
    logging.basicConfig(level=logging.WARNING, format="isoflop: %(message)s", stream=sys.stderr)
    logging.getLogger("isoflop").setLevel(logging.INFO)
    sys.stdout = sys.stdout or io.StringIO()  # closed by who started this: nobody reads
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a container without a locale prints ASCII
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments[:1] in ([], ["--help"], ["-h"]):
            overview()
        else:
            command, words, options = read(arguments)
            command(*words, **options)
        sys.stdout.flush()
    except ValueError as error:
        from isoflop.optics.config import OpticsError  # costs a twentieth of the start

        if not isinstance(error, (IsoflopError, OpticsError)):
            raise
        _refuse(str(error))
    except BrokenPipeError:  # the reader of the output closed it, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "make room (or give another folder)" if full else "give another path"
        _refuse(f"{error}; what was saved before is intact: {way_out} and run the same command again")
    except KeyboardInterrupt:
        print(
            "isoflop: stopped; everything done so far is saved; run the same command again to continue", file=sys.stderr
        )
        sys.exit(130)


def read(
    arguments: Sequence[str], commands: Mapping[str, Command] = COMMANDS
) -> tuple[Command, Sequence[Any], dict[str, Any]]:
    """The command that is asked for, with its arguments checked. Raises RecipeError with one sentence."""
    try:
        command, bound, _ = parser(commands).parse_args(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise RecipeError(sentence(error, commands)) from error
    words = check(bound) if command in commands.values() else bound.args  # else help, version, completion
    return command, words, bound.kwargs


def parser(commands: Mapping[str, Command]) -> App:
    """Cyclopts on the signatures of the commands; those of two words are in groups."""
    defaults = Parameter(converter=converted, negative_iterable=(), show_default=_shown_default)
    made = App("isoflop", version=_version, default_parameter=defaults, help_format="plaintext")
    for place, (name, command) in enumerate(commands.items()):
        group, _, last = name.rpartition(" ")
        if group and group not in made:
            made.command(App(group, help=GROUPS.get(group, ""), sort_key=place))
        (made[group] if group else made).command(command, name=last, sort_key=place)
    made.register_install_completion_command()

    @made.command(name="--show-completion")
    def show_completion(*, shell: Literal["bash", "zsh", "fish"] | None = None) -> None:
        """Print the completion script of a shell."""
        say(made.generate_completion(shell=shell))

    return made


def overview() -> None:
    """Every command with its sentence."""
    say("Usage: isoflop COMMAND ...\n\nKnow the result before you pay for the run. In the order of the data flow:\n")
    print_rows((name, (inspect.getdoc(command) or "").partition("\n")[0]) for name, command in COMMANDS.items())
    say(
        "\nMore: isoflop COMMAND --help; isoflop --version; isoflop --install-completion for bash, zsh and fish "
        "(--show-completion prints it)."
    )


def _version() -> str:
    from importlib.metadata import version  # costs a tenth of the start

    return f"isoflop {version('isoflop')}"


def _shown_default(value: Any) -> str | None:
    """As it would be typed; None: nothing to show."""
    values = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values if v not in ("", None)) or None


def _refuse(message: str) -> None:
    print(f"isoflop: error: {message}", file=sys.stderr)
    sys.exit(2)


_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)
"""Errors of the disk, which the user can fix; any other OSError is a bug and keeps its traceback."""
