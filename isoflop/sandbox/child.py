"""What runs inside, after all layers are closed: the answer's side runs code and serves requests.

Requests are frames (`values.py`): get a name, call, read or set an attribute, list, length, item. What is no plain data
stays in the answer's process and crosses as a handle, so the tests compare plain values, or handles by identity: no
method that the answer wrote ever runs where the verdict is made.
"""

import ast
import builtins
import contextlib
import os
import sys
import types
from collections.abc import Iterator
from os import _exit as leave  # bound here, so an answer that replaces os._exit still ends
from typing import Any

from isoflop.sandbox.values import ValueRefused, decode, encode, frame, read_frame, write_all

ROLES = {"answer": 0, "tests": 1}
CODE, CALLS, REPLIES, RESULT = 3, 4, 5, 6
MOST_ITEMS = 100_000  # assumption: of an iterator that tests read through
OUT_OF_MEMORY = 77
"""Exit code of a process that could not even say so."""
_ANYTHING = (Exception, SystemExit, KeyboardInterrupt)
"""What code of others may raise."""


def main(role: str, limits: dict[str, Any]) -> None:
    """Never returns."""
    code = 1
    try:
        code = (_answer if role == "answer" else _tests)(limits["output_bytes"])
    except MemoryError:
        code = OUT_OF_MEMORY
    except (OSError, EOFError, ValueRefused):
        pass  # the other side is gone
    finally:
        with contextlib.suppress(OSError, ValueError, AttributeError, MemoryError):
            sys.stdout.flush()
        leave(code)


def _read_code() -> dict[str, Any]:
    os.lseek(CODE, 0, os.SEEK_SET)
    found = read_frame(CODE, 2**31)
    os.close(CODE)
    return found


def _answer(most: int) -> int:
    """Load the answer, then serve requests until the other side closes."""
    module = types.ModuleType("answer")
    sys.modules["answer"] = module
    served = _Served(module, most)
    reply = served.guarded(lambda: exec(compile(_read_code()["code"], "answer.py", "exec"), module.__dict__))  # noqa: S102
    write_all(REPLIES, frame({"raised": reply["raised"]} if "raised" in reply else {"value": None}))
    if "raised" in reply:
        return 0
    while True:
        try:
            request = read_frame(CALLS, 2**31)
        except EOFError:
            return 0
        write_all(REPLIES, frame(served.guarded(lambda request=request: served.do(request))))


class _Served:
    """Objects of the answer's process that the other side holds numbers of."""

    def __init__(self, module: types.ModuleType, most: int) -> None:
        self.module, self.most = module, most
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}

    def number(self, thing: Any) -> int:
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.objects)
            self.objects.append(thing)  # kept, so its id stays its own
        return self.numbers[id(thing)]

    def do(self, request: dict[str, Any]) -> Any:
        arguments = [decode(a, lambda number, _: self.objects[number]) for a in request["arguments"]]
        on, keywords = request["on"], request.get("keywords", {})
        target = getattr(self.module, on) if isinstance(on, str) else self.objects[on]
        match request["do"]:
            case "get":
                return target
            case "call":
                named = {k: decode(v, lambda number, _: self.objects[number]) for k, v in keywords.items()}
                return target(*arguments, **named)
            case "attribute":
                return getattr(target, arguments[0])
            case "set":
                return setattr(target, *arguments)
            case "list":
                return [item for _, item in zip(range(MOST_ITEMS), target)]
            case "length":
                return len(target)
            case _:
                return target[arguments[0]]

    def guarded(self, work: Any) -> dict[str, Any]:
        """The reply to one request: a value, or what was raised instead."""
        try:
            value = encode(work(), self.number)
            if len(frame(value)) > self.most:
                raise ValueRefused(f"the value takes more than {self.most} bytes")
            return {"value": value}
        except _ANYTHING as error:
            return {"raised": describe(error)}


def describe(error: BaseException) -> list[str]:
    """Names of the error's class and of those above it, then its text."""
    try:
        text = str(error)[:300]
    except _ANYTHING:
        text = ""
    names = [kind.__name__ for kind in type(error).__mro__ if kind is not object]
    thread = isinstance(error, RuntimeError) and text == "can't start new thread"
    return [*(["MemoryError"] if thread else []), *names, text]


class Remote:
    """Stands for an object of the answer's process; equal only to itself."""

    def __init__(self, link: "Link", number: int, kind: str) -> None:
        object.__setattr__(self, "_remote", (link, number, kind))

    def _ask(self, do: str, *arguments: Any, **keywords: Any) -> Any:
        link, number, _ = object.__getattribute__(self, "_remote")
        return link.ask(do, number, arguments, keywords)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._ask("call", *arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return self._ask("attribute", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list"))

    def __len__(self) -> int:
        return self._ask("length")

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, '_remote')[2]} of the answer>"


class RemoteError(Exception):
    """Raised by the answer, of a class that only it knows."""


class AnswerGone(BaseException):
    """The answer's process ended or broke the protocol; no test may catch it as an error of the answer."""


class Link:
    """The tests' end of the pipes to the answer."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.known: dict[int, Remote] = {}
        self.receive()

    def receive(self) -> Any:
        try:
            reply = read_frame(REPLIES, self.most + 2**10)
            if "raised" in reply:
                *names, text = map(str, reply["raised"])
            else:
                return decode(reply["value"], self.opened)
        except (EOFError, OSError) as error:
            raise AnswerGone("the answer's process ended") from error
        except (ValueRefused, TypeError, KeyError, ValueError) as error:
            raise AnswerGone(f"the answer's process sent no value: {error}") from error
        for name in names:
            kind = getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception:
                raise kind(text) if kind not in _NOT_RAISED else RemoteError(f"{name}: {text}")
        raise RemoteError(f"{names[0] if names else 'error'}: {text}")

    def opened(self, number: int, kind: str) -> Remote:
        if number not in self.known:
            self.known[number] = Remote(self, number, kind)
        return self.known[number]

    def ask(self, do: str, on: str | int, arguments: tuple[Any, ...] = (), keywords: Any = None) -> Any:
        request = {"do": do, "on": on, "arguments": [self.packed(a) for a in arguments]}
        if keywords:
            request["keywords"] = {k: self.packed(v) for k, v in keywords.items()}
        try:
            write_all(CALLS, frame(request))
        except OSError as error:
            raise AnswerGone("the answer's process ended") from error
        return self.receive()

    def packed(self, value: Any) -> Any:
        return encode(value, _number_of)


_NOT_RAISED = (
    *(StopIteration, StopAsyncIteration),  # would end a loop of the tests as if it were done
    *(UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError, ExceptionGroup),  # a text alone does not make them
)


def _number_of(value: Any) -> int:
    if not isinstance(value, Remote):
        raise ValueRefused(f"tests hand a value of type {type(value).__name__} to the answer; only plain data crosses")
    return object.__getattribute__(value, "_remote")[1]


def free_names(code: str) -> set[str]:
    """Names that test code reads and neither defines nor finds among the built-in ones."""
    read, made = set(), set(dir(builtins))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else made).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return read - made


def _tests(most: int) -> int:
    """Run the tests against the answer's process and say how they ended."""
    given = _read_code()
    namespace: dict[str, Any] = {"__name__": "tests"}
    result: dict[str, Any] = {"passed": False}
    try:
        link = Link(most)
        exec(compile(given["helpers"], "helpers.py", "exec"), namespace)  # noqa: S102
        for name in sorted((free_names(given["code"]) - set(namespace)) | set(given["remote"])):
            namespace[name] = link.ask("get", name)
        exec(compile(given["code"], "tests.py", "exec"), namespace)  # noqa: S102
        result = {"passed": True}
    except (AnswerGone, RecursionError, *_ANYTHING) as error:
        result["raised"] = describe(error)
    write_all(RESULT, frame(result))
    return 0
