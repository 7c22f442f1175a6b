"""The command that writes job files for clusters: launch."""

from typing import Annotated

from cyclopts import Parameter

from isoflop.cli.arguments import Overrides, Recipe
from isoflop.cli.console import say
from isoflop.recipe import NotNegativeInt, PositiveInt, Range

Text = str | None
Kind = Annotated[str, Parameter(metavar="KIND", help="slurm, kubernetes, skypilot, torchrun or ray")]


def launch(
    kind: Kind,
    recipe: Recipe,
    /,
    *overrides: Overrides,
    nodes: Annotated[
        PositiveInt | None, Parameter(help="machines, 1 unless given; a sweep over several runs on Ray (not torchrun)")
    ] = None,
    gpus_per_node: Annotated[
        NotNegativeInt | None, Parameter(help="1 unless given; 0: none; a sweep trains one cell on each")
    ] = None,
    cpus_per_node: Annotated[PositiveInt | None, Parameter(help="8 for each GPU unless given")] = None,
    grace_s: Annotated[
        int | None,
        Range(at_least=10, at_most=65535),
        Parameter(help="seconds to save when the job is asked to stop; 300 unless given, more for a large model"),
    ] = None,
    restarts: Annotated[
        NotNegativeInt | None, Parameter(help="of a run that died, 3 unless given (kubernetes, skypilot, torchrun)")
    ] = None,
    time: Annotated[
        Text, Parameter(metavar="TIME", help="HH:MM:SS or D-HH:MM:SS, 24:00:00 unless given (slurm)")
    ] = None,
    partition: Annotated[Text, Parameter(metavar="NAME", help="of the cluster (slurm)")] = None,
    option: Annotated[
        tuple[str, ...], Parameter(metavar="NAME=VALUE", help="of sbatch, may be repeated: account=lab (slurm)")
    ] = (),
    image: Annotated[
        Text, Parameter(metavar="IMAGE", help="container image that has isoflop (kubernetes, skypilot)")
    ] = None,
    volume: Annotated[
        Text, Parameter(metavar="NAME", help="with the tokens, and for the runs (kubernetes, skypilot)")
    ] = None,
    accelerator: Annotated[Text, Parameter(metavar="NAME", help="as H100 (skypilot)")] = None,
    kubeflow: Annotated[bool, Parameter(help="a TrainJob of Kubeflow Trainer instead of a Job (kubernetes)")] = False,
    hosts: Annotated[Text, Parameter(metavar="NAMES", help="with commas between, the head first (ray)")] = None,
    user: Annotated[Text, Parameter(metavar="NAME", help="who logs in on the hosts; you unless given (ray)")] = None,
    setup: Annotated[
        Text, Parameter(metavar="COMMAND", help="shell line before the work, as 'source .venv/bin/activate'")
    ] = None,
    workdir: Annotated[
        Text, Parameter(metavar="DIR", help="where the job starts; mount point of the volume, /work unless given")
    ] = None,
    name: Annotated[Text, Parameter(metavar="NAME", help="of the job; default: that of the recipe's file")] = None,
    out: Annotated[Text, Parameter(metavar="DIR", help="output folder of the job; default: runs/NAME")] = None,
) -> None:
    """A recipe -> a job file for Slurm, Kubernetes, SkyPilot, torchrun or Ray, printed."""
    from isoflop.launch.job import Options, plan_job
    from isoflop.launch.job_file import job_file

    asked = Options(
        name=name,
        out=out,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        time=time,
        grace_s=grace_s,
        restarts=restarts,
        partition=partition,
        option=option,
        image=image,
        volume=volume,
        accelerator=accelerator,
        hosts=hosts,
        user=user,
        setup=setup,
        workdir=workdir,
        kubeflow=kubeflow,
    )
    say(job_file(plan_job(kind, recipe, overrides, asked)).rstrip("\n"))
