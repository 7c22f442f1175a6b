"""An endpoint of the OpenAI kind on this machine that judges by a rule, or misbehaves as it is told."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class FakeJudge:
    url: str = ""
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@contextmanager
def fake_judge(verdict: Callable[[str, int], str | bytes | int], *, drip_s: float = 0.0) -> Iterator[FakeJudge]:
    """`verdict(prompt, number of the call)`: what it says, raw bytes in place of JSON, or an HTTP status."""
    judge = FakeJudge()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.bodies.append(body)
            judge.keys.append(self.headers.get("Authorization"))
            said = verdict(body["messages"][-1]["content"], len(judge.bodies))
            if isinstance(said, int):
                self.send_error(said)
                return
            if isinstance(said, str):
                said = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            try:
                for at in range(len(said)) if drip_s else [slice(None)]:
                    self.wfile.write(said[at : at + 1] if drip_s else said)
                    self.wfile.flush()
                    time.sleep(drip_s)
            except OSError:
                pass  # the caller has gone, which is what a slow judge deserves

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
