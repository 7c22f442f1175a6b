"""The commands that let a model write: generate for scripts, chat for people."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from isoflop.cli.arguments import Json
from isoflop.cli.console import print_rows, say, shown
from isoflop.errors import RequestError
from isoflop.recipe import NotNegative, NotNegativeInt, PositiveInt, Seed, Share, write_json
from isoflop.threads import wait_for_the_next_product

if TYPE_CHECKING:
    from isoflop.serving.chat import Chat

Run = Annotated[Path, Parameter(metavar="RUN", help="folder of train, extend, import or an alignment")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda")]
Dtype = Annotated[Literal["auto", "float32", "bfloat16"], Parameter(help="auto: float32 on a CPU, else bfloat16")]
Draft = Annotated[
    Literal["none", "mtp", "lookup"],
    Parameter(help="who guesses ahead: nobody, prediction modules, the text itself; the text is the same"),
]
Tokens = Annotated[Path | None, Parameter(metavar="DIR", help="tokenizer; default: that of RUN")]


def generate(
    run: Run,
    /,
    *,
    prompt: Annotated[str | None, Parameter(metavar="TEXT", help="text to continue")] = None,
    prompts: Annotated[
        Path | None, Parameter(metavar="FILE", help="JSONL, each line with prompt, ids or messages")
    ] = None,
    max_tokens: Annotated[PositiveInt, Parameter(help="longest continuation")] = 128,
    temperature: Annotated[NotNegative, Parameter(help="0: the most likely token")] = 1.0,
    top_k: Annotated[NotNegativeInt, Parameter(help="draw from so many tokens; 0: all")] = 0,
    top_p: Annotated[Share, Parameter(help="draw from the fewest tokens of this probability")] = 1.0,
    min_p: Annotated[Share, Parameter(help="leave out what is less likely than this share of the best")] = 0.0,
    seed: Annotated[Seed | None, Parameter(help="same seed, same text; a line may have its own")] = None,
    stop: Annotated[tuple[str, ...], Parameter(metavar="TEXT", help="end before it; may be repeated")] = (),
    logprobs: Annotated[NotNegativeInt | None, Parameter(help="of each token, and so many likely ones")] = None,
    draft: Draft = "none",
    fixed_shapes: Annotated[bool, Parameter(help="same bytes whatever runs beside a prompt; slower")] = False,
    max_rows: Annotated[PositiveInt, Parameter(help="prompts that run at once")] = 32,
    cache_mib: Annotated[NotNegativeInt, Parameter(help="memory for pages; 0: by the machine")] = 0,
    tokens: Tokens = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = None,
) -> None:
    """A run and prompts -> their continuations."""
    wait_for_the_next_product()  # before torch is loaded
    if (prompt is None) == (prompts is None):
        raise RequestError("isoflop generate needs either --prompt TEXT or --prompts FILE")
    from isoflop.serving.engine import Engine
    from isoflop.serving.generate import generate as complete
    from isoflop.serving.generate import read_prompts, text_prompt
    from isoflop.serving.options import EngineOptions
    from isoflop.serving.request import Sampling

    options = EngineOptions(draft=draft, fixed_shapes=fixed_shapes, max_rows=max_rows, cache_bytes=cache_mib << 20)
    engine = Engine.open(run, options, device=device, dtype=dtype, tokens=tokens)
    asked = read_prompts(prompts, engine) if prompts is not None else [text_prompt(prompt or "", engine)]
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop,
        logprobs=logprobs,
    )
    found = complete(engine, asked, sampling)
    if json is not None:
        write_json(json, found)
    for one in found["completions"]:
        if len(asked) > 1:
            say(f"--- {one['prompt']!r:.70}")
        say(one["text"] if one["text"] is not None else " ".join(map(str, one["ids"])))
    accepted = ", ".join(shown(share) for share in found["acceptance"] or [])
    say(f"--- {found['tokens_per_s']:.1f} tokens/s" + (f", drafts accepted: {accepted}" if accepted else ""))


def chat(
    run: Run,
    /,
    *,
    system: Annotated[str, Parameter(metavar="TEXT", help="what the model is told first")] = "",
    style: Annotated[
        Literal["auto", "chat", "text"], Parameter(help="auto: chat where the run says how, else plain text")
    ] = "auto",
    max_tokens: Annotated[PositiveInt, Parameter(help="longest answer")] = 512,
    temperature: Annotated[NotNegative, Parameter(help="0: the most likely token")] = 0.8,
    top_p: Annotated[Share, Parameter(help="draw from the fewest tokens of this probability")] = 0.95,
    seed: Annotated[Seed | None, Parameter(help="same seed, same answers")] = None,
    draft: Draft = "none",
    tokens: Tokens = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Talk to a run; base models go on with your text."""
    wait_for_the_next_product()  # before torch is loaded
    from isoflop.serving.chat import HELP, Chat
    from isoflop.serving.conversation import is_chat_model
    from isoflop.serving.engine import Engine
    from isoflop.serving.options import EngineOptions
    from isoflop.serving.request import Sampling

    engine = Engine.open(run, EngineOptions(max_rows=1, draft=draft), device=device, dtype=dtype, tokens=tokens)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    is_chat = is_chat_model(run) if style == "auto" else style == "chat"
    conversation = Chat(engine, sampling, is_chat=is_chat, system=system)
    say(f"{'chat' if is_chat else 'plain text'} with {run}; {HELP}")
    while (line := _read_line()) is not None:
        try:
            _obey(conversation, line)
        except RequestError as error:
            say(f"  {error}")


def _read_line() -> str | None:
    """What the user types, with the terminal's own history; None at the end."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - arrow keys and history
    try:
        line = input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        say("")
        return None
    return None if line.strip() == "/quit" else line


def _obey(conversation: "Chat", line: str) -> None:
    """One line of the user: a command, or something to answer."""
    from isoflop.serving.chat import HELP

    command, _, rest = line.strip().partition(" ")
    match command:
        case "/help":
            say(HELP)
        case "/reset":
            conversation.reset()
        case "/retry":
            _show(conversation.retry())
        case "/system":
            conversation.system = rest
            conversation.reset()
        case "/set":
            name, _, value = rest.strip().partition(" ")
            conversation.set(name, value.strip())
        case "/show":
            print_rows((name, shown(value)) for name, value in conversation.show().items())
        case _ if command.startswith("/") and conversation.is_chat:
            raise RequestError(f"{command} is not a command; {HELP}")
        case _:
            _show(conversation.say(line))


def _show(pieces: Iterator[str]) -> None:
    """Text as it comes; Ctrl-C ends it."""
    try:
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
    sys.stdout.write("\n")
    sys.stdout.flush()
