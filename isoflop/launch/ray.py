"""A Ray cluster as an engine: a task of ours is one task of Ray's, with its share of a GPU and its CPU threads.

Ray only places and watches tasks. It repeats none (max_retries = 0), holds nothing large (a recipe goes in, a small
dictionary comes out) and does not stop what it did not start. Before anything runs, every machine says which software
it has, and reads a token in the folder that the driver writes to; a machine that joins later says so with its first
task. To be asked to stop arrives as SIGINT, which is what `ray.cancel` sends itself.
"""

import contextlib
import os
import secrets
import signal
import socket
import time
from pathlib import Path
from typing import Any

from isoflop.errors import DataError, RecipeError
from isoflop.launch.engine import STOP_S, Ended, Function, perform, use_threads
from isoflop.launch.machine import Ticket, lacks, software, token_file
from isoflop.run import cores

OBJECT_STORE_BYTES = 80 * 2**20
"""Of a cluster that is started here; the least that Ray takes is 75 MiB, and results are a few kB."""
CONNECT_S = 10.0
"""How long the cluster's address may take to answer; Ray itself would wait for many minutes."""
ANSWER_S = 180.0
"""How long a machine may take to say what it has: a cold start from a slow disk."""
LAG_S = 90.0
"""What another machine wrote is seen so much later on NFS with its usual caches (acdirmax = 60 s)."""


class RayEngine:
    """Tasks on the cluster at `address` ("auto": the one of this machine; empty: one that is started here).

    Units: `gpus` of one task, a fraction or 1; `max_tasks` at a time, 0: as many as there is room for.
    """

    lag_s = LAG_S

    def __init__(self, address: str, *, threads: int, gpus: float | None, device: str, max_tasks: int):
        self._address, self._threads, self._asked_gpus = address, threads, gpus
        self._device, self._max_tasks = device, max_tasks
        self._ours = self._joined = False
        self._gpus, self._ticket, self._remote = 0.0, None, None
        self._running: dict[Any, int] = {}
        self._count = self._room = 0
        self._counted_at = 0.0

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._joined:
            return
        ray = _ray()
        self.stop()
        self._forget_token()
        if self._ours:
            ray.shutdown()
        self._joined = False

    @property
    def gpus(self) -> float | None:
        self._join()
        return self._gpus

    def slots(self) -> int:
        self._join()
        if self._max_tasks:
            return self._max_tasks
        if time.monotonic() - self._counted_at > 5.0:
            self._room, self._counted_at = sum(map(self._room_on, self._nodes())), time.monotonic()
        return max(1, self._room)  # where all machines have gone one waits

    def start(self, function: Function, argument: Any) -> int:
        self._join()
        assert self._remote is not None
        self._count += 1
        self._running[self._remote.remote(self._ticket, function, argument)] = self._count
        return self._count

    def poll(self, timeout_s: float) -> list[Ended]:
        ray = _ray()
        if not self._running:
            return []
        waiting = list(self._running)
        if not ray.wait(waiting, timeout=timeout_s)[0]:
            return []
        return list(map(self._ended, ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]))

    def stop(self) -> None:
        if not self._running:
            return
        ray = _ray()
        asked, self._running = list(self._running), {}
        for reference in asked:
            ray.cancel(reference)
        _, late = ray.wait(asked, num_returns=len(asked), timeout=STOP_S)
        for reference in late:
            ray.cancel(reference, force=True)
        if late:
            ray.wait(late, num_returns=len(late), timeout=5.0)

    def require_shared(self, folder: Path, read: list[Path]) -> None:
        self._join()
        assert self._ticket is not None
        self._forget_token()
        token = secrets.token_hex(16)
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self._ticket = self._ticket._replace(
            folder=str(folder), token=token, read=tuple(str(path.resolve()) for path in read)
        )
        token_file(folder).write_text(token, encoding="utf-8")
        self._ask_all()

    def _forget_token(self) -> None:
        if self._ticket is not None and self._ticket.folder:
            token_file(Path(self._ticket.folder)).unlink(missing_ok=True)

    def _join(self) -> None:
        """Connect, find out what a task gets, and ask every machine for its software."""
        if self._joined:
            return
        try:
            ray = _ray()
        except ImportError as error:
            raise RecipeError(
                'engine.kind = "ray" needs Ray: pip install isoflop[cluster], or use --engine local'
            ) from error
        if not ray.is_initialized():
            _connect(self._address)
            self._ours = True
        self._joined = True
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        usual = 0.0 if self._device == "cpu" or not (has_gpus or self._device.startswith("cuda")) else 1.0
        self._gpus = usual if self._asked_gpus is None else self._asked_gpus
        self._ticket = Ticket(self._threads, self._gpus, self._device, software(), str(Path.cwd()))
        # A process keeps the GPU memory it has taken; without GPUs a process that stays has torch loaded already.
        limit = {"max_calls": 1} if self._gpus else {}
        self._remote = ray.remote(
            num_cpus=self._threads, num_gpus=self._gpus, max_retries=0, scheduling_strategy="SPREAD", **limit
        )(_task)
        if not self._max_tasks and not sum(map(self._room_on, self._nodes())):
            total = ray.cluster_resources()
            raise RecipeError(
                f"{self._where()} has no machine with room for a cell: one takes {self._threads} CPUs "
                f"(train.threads) and {self._gpus:g} GPUs (engine.gpus_per_cell), and all machines together have "
                f"{total.get('CPU', 0):g} and {total.get('GPU', 0):g}; lower them, add machines, or set "
                f"engine.max_cells where the cluster grows when it is asked to"
            )
        self._ask_all()

    def _where(self) -> str:
        return f"the cluster at {self._address}" if self._address else "the cluster on this machine"

    def _nodes(self) -> list[dict[str, Any]]:
        ray = _ray()
        return [node for node in ray.nodes() if node["Alive"]]

    def _room_on(self, node: dict[str, Any]) -> int:
        """Tasks that fit on an empty machine; a fraction never spans two GPUs."""
        has = node["Resources"]
        by_cpu = int(has.get("CPU", 0) // self._threads)
        return min(by_cpu, int(has.get("GPU", 0)) * int(1 / self._gpus + 1e-6)) if self._gpus else by_cpu

    def _ask_all(self) -> None:
        """Every machine that could get a task says what it lacks. Raises DataError for the first such."""
        ray = _ray()
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        look = ray.remote(num_cpus=0, max_retries=2)(lacks)
        asked = {}
        for node in self._nodes():
            if self._room_on(node):
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                asked[look.options(scheduling_strategy=there).remote(self._ticket)] = node["NodeManagerHostname"]
        ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
        for reference in ready:
            try:
                problem = ray.get(reference)
            except ray.exceptions.NodeDiedError:
                continue  # it has gone, and gets no task
            except ray.exceptions.RayError as error:
                raise DataError(_cannot_start(asked[reference], error)) from error
            if problem:
                raise DataError(problem)
        for reference in silent:
            ray.cancel(reference, force=True)
            raise DataError(
                f"machine {asked[reference]} of the cluster has not answered for {ANSWER_S:g} s; look at its Ray log, "
                f"or take it out of the cluster"
            )

    def _ended(self, reference: Any) -> Ended:
        ray = _ray()
        number = self._running.pop(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ModuleNotFoundError):  # on a machine that joined later
                raise DataError(_cannot_start("of the cluster", error)) from error
            return Ended(number, error=f"{type(error.cause).__name__}: {error.cause}", died=True)
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise DataError(_cannot_start("of the cluster", error)) from error
        except ray.exceptions.RayError as error:  # killed, its machine gone, out of memory
            return Ended(number, error=f"{type(error).__name__}: {_first_line(error)}", died=True)
        if answer["misfit"]:
            raise DataError(answer["misfit"])
        return Ended(number, answer["value"], answer["error"], node=answer["node"], seconds=answer["seconds"])


def _ray() -> Any:
    """The package; its types know only a part of what it takes and has."""
    import ray

    return ray


def _connect(address: str) -> None:
    """Join the cluster, or start one here.

    Raises:
        RecipeError: none at the address, another version of Ray, no token or another.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of a default that will change
    ray = _ray()
    address = _answering(address) if address else ""
    where = f"at {address}" if address else "on this machine"
    here = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else here))
    except getattr(ray.exceptions, "AuthenticationError", ConnectionError) as error:  # older versions have none
        raise RecipeError(f"the Ray cluster {where} asks for a token and there is none here: {_WAY_OUT}") from error
    except ConnectionError as error:  # though something listens there
        raise RecipeError(
            f"no Ray cluster {where} takes this process: {_WAY_OUT}; or what listens there is no Ray head "
            f"({_first_line(error)})"
        ) from error
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        hint = "; install the cluster's versions here" if "Version mismatch" in text else ""
        raise RecipeError(f"the Ray cluster {where} cannot be joined: {text}{hint}") from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray puts its own for SIGTERM


_WAY_OUT = (
    "set RAY_AUTH_MODE=token, and put the cluster's token into ~/.ray/auth_token, RAY_AUTH_TOKEN or the file of "
    "RAY_AUTH_TOKEN_PATH"
)


def _answering(address: str) -> str:
    """HOST:PORT where something listens; Ray would try another one for many minutes. Raises RecipeError."""
    found = address
    if address == "auto":
        found = os.environ.get("RAY_ADDRESS", "")
        current = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray/ray_current_cluster"  # noqa: S108
        if not found and current.is_file():
            found = current.read_text(encoding="utf-8").strip()
        if not found:
            raise RecipeError(
                "no Ray cluster on this machine (--cluster auto): start one with ray start --head, give --cluster "
                "HOST:PORT, or leave it out to start one for this sweep"
            )
    host, colon, port = found.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise RecipeError(f'engine.ray_address = {found!r} must be HOST:PORT or "auto" (--cluster)')
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as listener:
            speaks = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_grpc(listener)
    except (OSError, OverflowError) as error:
        raise RecipeError(
            f"no Ray cluster at {found}: {error}; give --cluster HOST:PORT of a running one (ray status says it), or "
            f"leave it out to start one on this machine"
        ) from error
    if not speaks:  # Ray itself would write log lines for minutes
        raise RecipeError(f"what listens at {found} is no head of a Ray cluster; ray status says its address")
    return found


def _speaks_grpc(listener: socket.socket) -> bool:
    """Whether settings of HTTP/2 come back for ours, as from the head of a cluster. Source: RFC 9113, section 3.4."""
    listener.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    with contextlib.suppress(OSError):  # it closed the connection, or says nothing
        return listener.recv(9)[3:4] == b"\x04"
    return False


def _task(ticket: Ticket, function: Function, argument: Any) -> dict[str, Any]:
    """On a worker: one task; errors of the user come back as data."""
    asked = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        began = time.monotonic()
        if problem := lacks(ticket):
            return {"misfit": problem}
        if not ticket.gpus:  # else "auto" would find GPUs that Ray has given to others
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        use_threads(ticket.threads)
        with contextlib.suppress(OSError):  # tokens may be named relative to it
            os.chdir(ticket.cwd)
        value, error = perform(function, argument, lambda: asked)
        seconds = time.monotonic() - began
        return {"misfit": "", "value": value, "error": error, "node": _name(), "seconds": seconds}
    finally:
        signal.signal(signal.SIGINT, before)


def _name() -> str:
    """Of this machine; containers of one image may have the same, so with the first digits of Ray's own."""
    ray = _ray()
    return f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:6]}"


def _cannot_start(machine: str, error: Exception) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in software())
    reason = _last_line(error)
    return f"machine {machine} cannot run a task of isoflop: {reason}; install there what this one has: {versions}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
