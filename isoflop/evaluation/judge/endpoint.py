"""A model behind HTTP: messages in, text out, within a bounded time; whatever goes wrong is one kind of error."""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from isoflop.errors import DataError, IsoflopError
from isoflop.evaluation.judge.recipe import JudgeSection

MOST_BYTES = 4_000_000
"""Of an answer; no judgement is as long (assumption)."""
LONGEST_WAIT_S = 60.0
Messages = Sequence[dict[str, str]]


class CallFailed(IsoflopError):
    """No text came back, after all tries: the judgement is missing."""


def ask(section: JudgeSection, messages: Messages, stop: threading.Event) -> str:
    """What the model says at temperature 0. `stop` ends the waiting between tries.

    Raises:
        CallFailed: down, too slow, or answers that are none.
        DataError: it refuses us (key, model, path), which trying again does not cure.
    """
    why = ""
    for number in range(section.tries):
        if number and stop.wait(min(section.retry_s * 2 ** (number - 1), LONGEST_WAIT_S)):
            break
        try:
            return _text(_post(section, messages))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (408, 409, 425, 429):
                raise DataError(
                    f"judge.url = {section.url} refuses the call (HTTP {error.code} {error.reason}); check judge.url, "
                    "judge.model and the key in judge.key_variable"
                ) from error
            why = f"HTTP {error.code} {error.reason}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
    raise CallFailed(why or "stopped")


def _post(section: JudgeSection, messages: Messages) -> bytes:
    body = {"model": section.model, "messages": list(messages), "temperature": 0, "max_tokens": section.max_tokens}
    headers = {"Content-Type": "application/json"}
    if section.key_variable:
        if not (key := os.environ.get(section.key_variable)):
            raise DataError(f"judge.key_variable = {section.key_variable}: that variable is not set; export it first")
        headers["Authorization"] = f"Bearer {key}"
    url = f"{section.url.rstrip('/')}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 (http only: recipe.check)
    deadline, parts, size = time.monotonic() + section.timeout_s, [], 0
    with urllib.request.urlopen(request, timeout=section.timeout_s) as answer:  # noqa: S310
        while part := answer.read1(65536):  # one wait each: a trickle of bytes must not stretch the deadline
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {section.timeout_s:g} s")
    return b"".join(parts)


def _text(body: bytes) -> str:
    found: Any = json.loads(body)
    try:
        text = found["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no choices[0].message.content in {body[:80]!r}") from error
    if not isinstance(text, str):
        raise ValueError(f"content is no text: {text!r:.80}")
    return text
