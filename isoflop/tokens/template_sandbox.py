"""A Jinja chat template in a sandbox: messages in, text out, within limits of time, memory and size.

Templates come with weights that others published, so they are programs of strangers. Ours run in this process; any
other runs in a worker process that can read no attribute the sandbox forbids, opens no file (the environment has no
loader), and is killed when it exceeds its limits. The environment has what `transformers` gives a template, except
the date: a template that asks for it takes its own default, so that ids do not depend on the day.

This file is also the worker: `python -m isoflop.tokens.template_sandbox` reads one JSON request a line on stdin. It
imports nothing but Jinja and the standard library.
"""

import contextlib
import json
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from isoflop.errors import DataError

MAX_SECONDS = 5.0  # assumption: rendering takes milliseconds
MAX_CHARACTERS = 16_000_000  # assumption: longer than any conversation
MAX_MEMORY_BYTES = 1 << 30  # assumption: the interpreter itself takes a twentieth
MAX_TEMPLATE_CHARACTERS = 1_000_000


class Refused(DataError):
    """The template will not render these messages, in its own words."""


def compile_template(source: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from variables to text. Raises jinja2.TemplateError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    template = environment.from_string(source)
    return lambda variables: template.render(**variables)


class Renderer:
    """Renders one template; `trusted` ones here, others in a worker that is started at the first use."""

    def __init__(self, source: str, origin: str, *, trusted: bool = False):
        """`origin` names the template in messages. Raises DataError for one that is no template."""
        self._source, self._origin = source, origin
        self._here = compile_template(source) if trusted else None
        self._worker: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # batches are rendered in more than one thread
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise DataError(
                f"{origin}: a template of {len(source)} characters is too long, at most {MAX_TEMPLATE_CHARACTERS}; "
                "give the template alone"
            )

    def render(self, variables: Mapping[str, Any]) -> str:
        """Text of the template for these variables (plain data).

        Raises:
            Refused: the template refuses the messages.
            DataError: it is no template, or breaks a limit or the sandbox.
        """
        if self._here is not None:
            try:
                return self._here(variables)
            except jinja2.TemplateError as error:
                raise Refused(f"{self._origin} refuses this conversation: {error}") from error
        with self._lock:
            answer = self._ask(json.dumps(variables).encode() + b"\n")
        if "text" in answer:
            return answer["text"]
        if answer.get("refused"):
            raise Refused(f"{self._origin} refuses this conversation: {answer['error']}")
        raise DataError(f"{self._origin} is no usable chat template: {answer['error']}; give another template")

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            for pipe in (self._worker.stdin, self._worker.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._worker = None

    def __del__(self) -> None:
        self.close()

    def _ask(self, request: bytes) -> dict[str, Any]:
        worker = self._start()
        assert worker.stdin is not None and worker.stdout is not None
        try:
            worker.stdin.write(request)
            worker.stdin.flush()
        except OSError:
            self.close()
            return {"error": "its process ended"}
        ready, _, _ = select.select([worker.stdout], [], [], MAX_SECONDS)
        line = worker.stdout.readline() if ready else b""
        if not line.endswith(b"\n"):
            self.close()
            reason = "its process ended, probably out of memory" if ready else f"it runs longer than {MAX_SECONDS:g} s"
            return {"error": reason}
        return json.loads(line)

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._worker is None or self._worker.poll() is not None:
            self.close()
            command = [sys.executable, "-m", "isoflop.tokens.template_sandbox"]
            environment = {"PYTHONPATH": str(Path(__file__).parents[2])}  # nothing else of ours reaches the worker
            self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            assert self._worker.stdin is not None
            self._worker.stdin.write(json.dumps({"source": self._source}).encode() + b"\n")
        return self._worker


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for other software; here it only renders its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON without HTML escapes, as templates expect it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise _Raised(message)


class _Raised(jinja2.TemplateError):
    """The template called `raise_exception`."""


def _serve(requests: Iterator[bytes]) -> None:
    """Answer requests until the input ends; the first line is the template."""
    source = json.loads(next(requests))["source"]
    render: Callable[[Mapping[str, Any]], str] | None = None
    for line in requests:
        variables = json.loads(line)
        try:
            render = render or compile_template(source)
            text = render(variables)
            if len(text) > MAX_CHARACTERS:
                answer: dict[str, Any] = {"error": f"it made {len(text)} characters, at most {MAX_CHARACTERS}"}
            else:
                answer = {"text": text}
        except _Raised as error:
            answer = {"error": str(error), "refused": True}
        except MemoryError:
            answer = {"error": f"it needs more than {MAX_MEMORY_BYTES >> 20} MiB"}
        except _ERRORS as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


_ERRORS = (
    *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
"""What a template of a stranger may end with."""


def _main() -> None:
    import resource

    import jinja2.debug  # what Jinja would import later, when no file can be opened any more

    with contextlib.suppress(jinja2.TemplateError):
        compile_template("{{ '\\n' }}{{ raise_exception(\"\\u00e9\") }}")({})
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    _serve(iter(sys.stdin.buffer.readline, b""))


if __name__ == "__main__":
    _main()
