"""Which engine a recipe asks for: `[engine]`, its rules, and the engine itself."""

from dataclasses import dataclass
from typing import Annotated, Literal

from isoflop.errors import RecipeError
from isoflop.launch.engine import Engine
from isoflop.recipe import NotNegative, Range, check_ranges

Kind = Literal["local", "ray"]


@dataclass(frozen=True)
class EngineSection:
    """Where cells run; it changes no cell and no record."""

    kind: Kind = "local"
    """local: processes of this machine. ray: a cluster, whose machines must see the same folders."""
    ray_address: str = ""
    """Of a running cluster, HOST:PORT, or "auto" on one of its machines; empty: start one on this machine."""
    gpus_per_cell: NotNegative | None = None
    """With ray: GPUs of a cell, 1 or a fraction such as 0.25; left out: 1 where the cluster has GPUs, unless
    train.device = "cpu". On this machine ladder.workers share the GPUs."""
    max_cells: Annotated[int, Range(at_least=0, at_most=100_000)] = 0
    """With ray: cells at a time; 0: as many as the cluster has room for. A cluster that grows by itself needs it."""


def check_engine(section: EngineSection, device: str) -> None:
    """Ranges, and rules between keys. Raises RecipeError naming the key, the value, the rule and a way out."""
    check_ranges(section, "engine.")
    gpus = section.gpus_per_cell
    if gpus is not None and gpus > 1:
        raise RecipeError(
            f"engine.gpus_per_cell = {gpus:g} must be at most 1: training over several GPUs does not exist yet; "
            f"set 1, or a fraction such as 0.25"
        )
    if section.kind == "local":
        return
    if section.ray_address.startswith("ray://"):
        raise RecipeError(
            f"engine.ray_address = {section.ray_address!r} is a Ray client, and a sweep would end with its connection: "
            f"run isoflop on a machine of the cluster, for example with ray job submit, with --cluster auto"
        )
    if device.startswith("cuda") and gpus == 0:
        raise RecipeError(f"engine.gpus_per_cell = 0 leaves no GPU for train.device = {device!r}; set 1, or a fraction")
    if device.startswith("cuda:"):
        raise RecipeError(f'train.device = {device!r}: Ray says which GPU a cell has; set train.device = "cuda"')


def open_engine(section: EngineSection, *, workers: int, threads: int, device: str) -> Engine:
    """The engine, with `workers` processes where it is this machine; a cluster is joined when first needed.

    Raises:
        RecipeError: values that don't go together.
    """
    check_engine(section, device)
    if section.kind == "local":
        from isoflop.launch.local import LocalEngine

        return LocalEngine(workers, threads, cuda=device in ("auto", "cuda"))
    from isoflop.launch.ray import RayEngine

    return RayEngine(
        section.ray_address, threads=threads, gpus=section.gpus_per_cell, device=device, max_tasks=section.max_cells
    )
