"""What a job file says: which command of which recipe, on which nodes, and with how much time to save.

A `Job` is plain data that was checked: whatever a user wrote is one line of printable text, what goes into places that
have no quotes (names, hosts, options of a scheduler) is held to the characters that need none, and nothing is asked for
that the command cannot use. `job_file` writes it.
"""

import contextlib
import getpass
import logging
import posixpath
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from isoflop import keys
from isoflop.errors import RecipeError, did_you_mean
from isoflop.launch.choose import check_engine
from isoflop.model.hardware import HARDWARE
from isoflop.recipe import load_recipe, read_tree

logger = logging.getLogger(__name__)

COMMANDS = {
    kind: keys.COMMANDS[kind]
    for kind in ("sweep", "pretrain", "extend", "sft", "dpo", "reward", "imaging", "imaging_sweep")
}
"""Kind of recipe -> the command that runs it, saves when it is asked to stop, and goes on when it is run again."""

TARGETS = {
    "slurm": {"nodes", "time", "partition", "option", "setup", "workdir"},
    "kubernetes": {"nodes", "restarts", "image", "volume", "setup", "workdir", "kubeflow"},
    "skypilot": {"nodes", "restarts", "image", "volume", "accelerator", "setup", "workdir"},
    "torchrun": {"restarts", "setup", "workdir"},
    "ray": {"hosts", "user", "setup", "workdir"},
}
"""Kind of job file -> the options that not every kind has."""

WORKDIR = "/work"
"""Where a volume is mounted, and the job starts, unless --workdir says otherwise."""
SAVE_S = 300
"""Seconds to save and leave, unless the recipe tells the size of its checkpoints (assumption)."""
SAVE_BYTES_PER_S = 2e8
"""Of a slow shared file system (assumption); our own disk wrote 1.4 GB/s."""
CHECKPOINT_BYTES_PER_PARAM = 12
"""Weights and two moments in float32."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for; None: not given."""

    name: str | None = None
    out: str | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    time: str | None = None
    grace_s: int | None = None
    restarts: int | None = None
    partition: str | None = None
    option: tuple[str, ...] = ()
    image: str | None = None
    volume: str | None = None
    accelerator: str | None = None
    hosts: str | None = None
    user: str | None = None
    setup: str | None = None
    workdir: str | None = None
    kubeflow: bool = False


@dataclass(frozen=True)
class Job:
    """A checked job: values of every file filled in, what only some files have as it was asked for."""

    target: str
    kind: str
    recipe: Path
    overrides: tuple[str, ...]
    asked: Options
    name: str
    out: str
    nodes: int
    gpus_per_node: int
    cpus_per_node: int
    threads: int
    """Of one process: OMP_NUM_THREADS."""
    time: str
    grace_s: int
    restarts: int
    hosts: tuple[str, ...]
    user: str
    workdir: str

    @property
    def on_ray(self) -> bool:
        """Whether it is a sweep over the nodes of a Ray cluster."""
        return self.target == "ray" or self.nodes > 1

    def command(self, recipe: str) -> list[str]:
        """The words of the command, with the recipe where the job finds it."""
        engine = ["--engine", "ray", "--cluster", "auto"] if self.on_ray else []
        return [*COMMANDS[self.kind].split(), recipe, *self.overrides, *engine, "--out", self.out]

    def recipe_here(self) -> str:
        """The recipe as a job on the same file system reads it."""
        return str(self.recipe.resolve() if self.workdir else self.recipe)


def plan_job(target: str, recipe: Path, overrides: tuple[str, ...], asked: Options) -> Job:
    """A job of what is asked for.

    Raises:
        RecipeError: an unknown kind of job file, a recipe that is none or of a kind that no job runs, a value out of
            its rule, options that contradict each other, more GPUs than the command can use.
    """
    if target not in TARGETS:
        hint = did_you_mean(target, TARGETS, f"known kinds: {', '.join(TARGETS)}")
        raise RecipeError(f"{target} is no kind of job file; {hint}")
    kind = kind_of_recipe(recipe, overrides)
    loaded = load_recipe(recipe, keys.recipe_of(kind), overrides)
    _check_text(
        recipe=str(recipe), overrides=overrides, **{field.name: getattr(asked, field.name) for field in fields(asked)}
    )
    if kind == "sweep":
        check_engine(loaded.engine, loaded.train.device)
    _check_setup(asked.setup)
    _check_used(target, asked)
    name = _name(asked.name, recipe)
    hosts = _hosts(target, asked.hosts)
    nodes = len(hosts) if hosts else asked.nodes or 1
    on_cpu = getattr(getattr(loaded, "train", None), "device", "auto") == "cpu"
    gpus = (0 if on_cpu else 1) if asked.gpus_per_node is None else asked.gpus_per_node
    if on_cpu and gpus:
        raise RecipeError(f"--gpus-per-node {gpus} contradicts train.device = cpu of {recipe}; give --gpus-per-node 0")
    _check_kind(target, kind, nodes, gpus)
    if kind == "pretrain" and gpus and (said := too_large(loaded, asked.accelerator or "")):
        logger.warning(said)
    if target == "slurm":
        _check_slurm(asked)
    grace_s = _save_s(kind, loaded) if asked.grace_s is None else asked.grace_s
    time = asked.time or "24:00:00"
    if target == "slurm" and seconds_of(time) < 2 * grace_s:
        raise RecipeError(
            f"--time {time} is less than twice --grace-s {grace_s}, the seconds kept for saving; give more time"
        )
    _check_place(target, asked, gpus)
    out, workdir = asked.out or f"runs/{name}", asked.workdir or _workdir(target)
    _check_out(target, out, workdir)
    cpus = asked.cpus_per_node or 8 * max(1, gpus)
    return Job(
        target=target,
        kind=kind,
        recipe=recipe,
        overrides=(*overrides, *_workers(recipe, overrides, kind, nodes, gpus, target)),
        asked=asked,
        name=name,
        out=out,
        nodes=nodes,
        gpus_per_node=gpus,
        cpus_per_node=cpus,
        threads=max(1, cpus // max(1, gpus)),
        time=time,
        grace_s=grace_s,
        restarts=3 if asked.restarts is None else asked.restarts,
        hosts=hosts,
        user=_user(asked.user) if target == "ray" else "",
        workdir=workdir,
    )


def kind_of_recipe(path: Path, overrides: tuple[str, ...] = ()) -> str:
    """The kind of a recipe that a job can run: by its first line, else by the sections it has.

    Raises:
        RecipeError: no file, a kind that no job runs, or several kinds that it may be.
    """
    kinds = keys.kinds_of(path, overrides)
    fitting = [kind for kind in kinds if kind in COMMANDS]
    if len(kinds) == 1 and not fitting:
        raise RecipeError(
            f"{path} is of kind {kinds[0]}, which has no job file; kinds that have one: {', '.join(COMMANDS)}"
        )
    if len(fitting) != 1:
        may_be = (
            f"may be of kind {' or '.join(fitting)}" if fitting else "has the sections of no recipe that a job runs"
        )
        line = f"#:schema {(fitting or ['sweep'])[0]}.json"
        raise RecipeError(f"{path} {may_be}; begin it with a line that says its kind, for example {line}")
    return fitting[0]


def seconds_of(time: str) -> int:
    """Seconds of a time limit, HH:MM:SS or D-HH:MM:SS. Raises RecipeError for another form."""
    found = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)", time)
    if found is None or (found[1] and int(found[2]) > 23):
        raise RecipeError(f"--time = {time!r} must be HH:MM:SS or D-HH:MM:SS, for example 24:00:00 or 1-12:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def too_large(recipe: Any, accelerator: str) -> str:
    """Why a run does not fit its GPU, or the largest that is known where its kind is not; empty where it fits."""
    from isoflop.model.accounting import training_memory

    largest = max(HARDWARE.values(), key=lambda device: device.memory_bytes)
    device = HARDWARE.get(accelerator.upper(), largest)
    t, where = recipe.train, recipe.computed_as()
    given = t.micro_batch or t.batch_tokens // recipe.model.seq_len
    needs, least = (training_memory(recipe.model, micro_batch=n, **where).total_bytes / 2**30 for n in (given or 1, 1))
    has = device.memory_bytes / 2**30
    if needs <= has:
        return ""
    name = device.name if device is not largest else f"the largest GPU known here ({device.name})"
    way_out = f"train.micro_batch=1 needs {least:,.0f}" if least <= has else "a run uses one GPU: take a smaller model"
    asked = f"a training step with train.micro_batch = {given}"
    return f"{asked} needs about {needs:,.0f} GiB and {name} has {has:.0f}; {way_out}"


def _check_text(**values: Any) -> None:
    for name, value in values.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isprintable():
                raise RecipeError(
                    f"{_option(name)} = {text!r} must be one line of printable text; leave out line breaks and tabs"
                )
            if text == "":
                raise RecipeError(f"{_option(name)} is empty; give a value or leave it out")


def _check_setup(line: str | None) -> None:
    """A shell line that is whole, so that what follows it is not part of it."""
    try:
        whole = shlex.split(line or "", comments=True) == shlex.split(line or "")
    except ValueError:  # a quote or a backslash that is open
        whole = False
    if not whole:
        raise RecipeError(f"--setup = {line!r} must be a whole shell line: close its quotes, leave out comments")


def _check_used(target: str, asked: Options) -> None:
    if asked.kubeflow and asked.restarts is not None:
        raise RecipeError("--restarts has no effect on a TrainJob; leave it out, or leave out --kubeflow")
    special = set().union(*TARGETS.values())
    for name in (field.name for field in fields(asked)):
        if name in special - TARGETS[target] and getattr(asked, name) not in (None, (), False):
            has = ", ".join(kind for kind, names in TARGETS.items() if name in names)
            raise RecipeError(f"{_option(name)} has no effect on a {target} file; leave it out (it is for {has})")


def _name(asked: str | None, recipe: Path) -> str:
    """Of the job: what Slurm, Kubernetes and SkyPilot all take."""
    made = re.sub(r"[^a-z0-9]+", "-", (asked or recipe.stem).lower()).strip("-")[:40].strip("-")
    made = made if re.match("[a-z]", made) else f"job-{made}".strip("-")
    if asked is None or asked == made:
        return made
    raise RecipeError(
        f"--name = {asked!r} must be up to 40 lower-case letters, digits and dashes, a letter first; for example {made}"
    )


def _hosts(target: str, asked: str | None) -> tuple[str, ...]:
    if target != "ray":
        return ()
    hosts = tuple((asked or "").split(","))
    if asked is None or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.\-]*", host) for host in hosts):
        given = "needs" if asked is None else f"= {asked!r} must be"
        raise RecipeError(f"--hosts {given} names with commas between, the head first, for example --hosts gpu1,gpu2")
    if len(set(hosts)) < len(hosts):
        raise RecipeError(f"--hosts = {asked!r} names a host twice; name each once")
    return hosts


def _user(asked: str | None) -> str:
    """Who logs in on the hosts."""
    user = asked or ""
    if asked is None:
        with contextlib.suppress(KeyError, OSError):  # no such user, as in a container
            user = getpass.getuser()
    if not re.fullmatch(r"[A-Za-z_][\w.\-]*", user):
        raise RecipeError(f"--user = {user!r} must be the name that logs in on the hosts; for example --user ubuntu")
    return user


def _workdir(target: str) -> str:
    """Where a job starts: on its volume; for hosts of one's own, in the shared folder one stands in."""
    if target in ("kubernetes", "skypilot"):
        return WORKDIR
    return str(Path.cwd()) if target == "ray" else ""


def _check_kind(target: str, kind: str, nodes: int, gpus: int) -> None:
    if kind == "sweep":
        return
    if target == "ray":
        raise RecipeError(
            f"Ray runs the cells of a sweep, and this is a {kind} recipe; use isoflop launch slurm, kubernetes, "
            "skypilot or torchrun"
        )
    if nodes > 1 or gpus > 1:
        asked = f"--nodes {nodes}" if nodes > 1 else f"--gpus-per-node {gpus}"
        raise RecipeError(
            f"{asked}: isoflop {COMMANDS[kind]} uses one GPU, since training over several GPUs does not exist yet; "
            "leave it at 1 (a sweep uses several, one cell on each)"
        )


SET_BY_US = {
    *("job-name", "nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "gres", "gpus", "cpus-per-task", "time"),
    *("signal", "requeue", "no-requeue", "open-mode", "output", "partition"),
}
"""Options of sbatch that the file has already, or that would contradict them."""


def _check_slurm(asked: Options) -> None:
    if asked.partition and not re.fullmatch(r"[\w.,\-]+", asked.partition):
        raise RecipeError(f"--partition = {asked.partition!r} must be a name of letters, digits, dots and dashes")
    for option in asked.option:
        name = option.partition("=")[0]
        if not re.fullmatch(r"[a-z][a-z\-]*(=[\w.,:@%+/\-\[\]*]+)?", option):
            raise RecipeError(
                f"--option = {option!r} must be an option of sbatch without its dashes and without spaces, for example "
                "account=lab or mem=64G"
            )
        if name in SET_BY_US:
            raise RecipeError(
                f"--option {option}: the file says {name} itself; use the option of isoflop launch for it"
            )


def _check_out(target: str, out: str, workdir: str) -> None:
    """Results lie where they outlive the job."""
    if "://" in out:
        raise RecipeError(
            f"--out = {out!r} is a bucket: checkpoints are renamed and records appended in place; give a folder of a "
            "file system"
        )
    if target not in ("kubernetes", "skypilot"):
        return
    mounted = PurePosixPath(posixpath.normpath(workdir))
    if len(mounted.parts) < 2 or mounted.parts[1] in ("dev", "etc", "proc", "sys"):
        raise RecipeError(f"--workdir = {workdir!r} is where the volume is mounted: give a folder of its own, as /work")
    if not PurePosixPath(posixpath.normpath(mounted / out)).is_relative_to(mounted):
        raise RecipeError(
            f"--out = {out!r} lies outside the volume, which is mounted at {workdir}, and is lost: give one below it"
        )


def _check_place(target: str, asked: Options, gpus: int) -> None:
    """A volume has the tokens and the runs where a job's node has no file system that it shares with others."""
    if target not in ("kubernetes", "skypilot"):
        return
    if target == "kubernetes" and not asked.image:
        raise RecipeError("a kubernetes file needs --image IMAGE, a container image that has isoflop")
    if asked.image and not re.fullmatch(r"[\w.\-/:@]+", asked.image):
        raise RecipeError(f"--image = {asked.image!r} must be the name of a container image, for example lab/isoflop:1")
    if not asked.volume:
        what = "PersistentVolumeClaim" if target == "kubernetes" else "SkyPilot volume"
        raise RecipeError(f"a {target} file needs --volume NAME, a {what} with the tokens; runs are kept there, too")
    if "://" in asked.volume:
        raise RecipeError(
            f"--volume = {asked.volume!r} is a bucket: checkpoints are renamed and records appended in place, which a "
            "mounted bucket may not do; give the name of a volume"
        )
    if not re.fullmatch(r"[a-z0-9]([a-z0-9\-.]*[a-z0-9])?", asked.volume):
        raise RecipeError(
            f"--volume = {asked.volume!r} must be the name of a volume: lower-case letters, digits, dashes"
        )
    if asked.accelerator and not gpus:
        raise RecipeError(f"--accelerator {asked.accelerator} contradicts a job without GPUs; leave one of the two out")
    if target == "skypilot" and gpus and not re.fullmatch(r"[A-Za-z][\w.\-]*", asked.accelerator or ""):
        given = f", and {asked.accelerator!r} is none" if asked.accelerator else ""
        raise RecipeError(
            f"a skypilot file needs --accelerator NAME, for example H100{given}; their number is --gpus-per-node"
        )
    if (asked.workdir or "/")[0] != "/":
        raise RecipeError(f"--workdir = {asked.workdir!r} is where the volume is mounted; begin it with /")


def _workers(recipe: Path, overrides: Iterable[str], kind: str, nodes: int, gpus: int, target: str) -> tuple[str, ...]:
    """One process a GPU for a sweep on one node; Ray counts GPUs by itself."""
    if kind != "sweep" or target == "ray" or nodes > 1 or gpus < 2:
        return ()
    overrides = tuple(overrides)
    given = read_tree(None, overrides).get("ladder", {}).get("workers")
    if given is None:
        workers = read_tree(recipe).get("ladder", {}).get("workers", 1)
        return () if workers >= gpus else (f"ladder.workers={gpus}",)
    if given < gpus:
        raise RecipeError(
            f"ladder.workers={given} leaves GPUs idle: --gpus-per-node is {gpus}; leave one of the two out"
        )
    return ()


def _save_s(kind: str, loaded: Any) -> int:
    """Seconds from the request to stop until a checkpoint is written, generously."""
    if kind != "pretrain":
        return SAVE_S
    from isoflop.model.accounting import count_parameters

    n_bytes = CHECKPOINT_BYTES_PER_PARAM * count_parameters(loaded.model).n_params_total
    return max(SAVE_S, 60 * round(2 + n_bytes / SAVE_BYTES_PER_S / 60))


def _option(name: str) -> str:
    return name if name in ("recipe", "overrides") else f"--{name.replace('_', '-')}"
