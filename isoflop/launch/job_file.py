"""A checked job -> the text of its file, from the templates that the package carries.

Templates hold all words and structure. What a user wrote is inserted as one word of a shell (`sh`), as a quoted string
or a block of YAML (`yaml`, `block`), or, for --setup, as the shell line that it is; everything else is a number, or a
name that `plan_job` has checked.
"""

import shlex
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from isoflop.launch.job import Job
from isoflop.recipe import read_tree, to_toml

TEMPLATES = {
    "slurm": "slurm.sbatch",
    "kubernetes": "kubernetes.yaml",
    "kubeflow": "kubeflow.yaml",
    "skypilot": "skypilot.yaml",
    "torchrun": "torchrun.sh",
    "ray": "ray.yaml",
}
MOUNTED = "/etc/isoflop/recipe.toml"
"""Where Kubernetes puts the recipe that the file carries."""
COPIED = "~/isoflop-recipe.toml"
"""Where SkyPilot and Ray copy the recipe to."""


def job_file(job: Job) -> str:
    template = TEMPLATES["kubeflow" if job.asked.kubeflow else job.target]
    text = _text(job.recipe) if job.target == "kubernetes" else ""
    values = _ray_commands(job) if job.target == "ray" else {}
    return (
        _environment()
        .get_template(template)
        .render(job=job, words=_words, text=text, mounted=MOUNTED, copied=COPIED, **values)
    )


def _ray_commands(job: Job) -> dict[str, object]:
    """Lines that Ray's cluster launcher runs on the head and on the other hosts, and the one that starts the sweep."""
    setup = [job.asked.setup] if job.asked.setup else []
    node = f"--disable-usage-stats --num-cpus={job.cpus_per_node} --num-gpus={job.gpus_per_node}"
    head = f"RAY_AUTH_MODE=token ray start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml {node}"
    worker = f"RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379 {node}"
    sweep = ["export RAY_AUTH_MODE=token", f"cd -- {shlex.quote(job.workdir)}", *setup]
    return {
        "on_head": [" && ".join([*setup, line]) for line in ("ray stop", head)],
        "on_workers": [" && ".join([*setup, line]) for line in ("ray stop", worker)],
        "sweep": " && ".join([*sweep, f"isoflop {_words(job, job.recipe_here())}"]),
    }


def _text(recipe: Path) -> str:
    """Of a recipe that travels in the file; without its comments where it is not UTF-8."""
    try:
        return recipe.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return to_toml(read_tree(recipe))


def _words(job: Job, recipe: str) -> str:
    """The command after `isoflop`, as a shell reads it; a tilde before the recipe's path stays one."""
    words = [shlex.quote(word) for word in job.command(recipe)]
    return " ".join(recipe if word == shlex.quote(recipe) and recipe == COPIED else word for word in words)


def yaml_string(text: str) -> str:
    """A double-quoted scalar of YAML, all on one line."""
    return f'"{"".join(_yaml_char(char) for char in text)}"'


def yaml_block(text: str, indent: int) -> str:
    """Lines of text as a literal block, `indent` columns deep in steps of two; quoted where a block changes them."""
    *lines, end = text.split("\n")
    if end or not lines or not lines[-1] or not all(line.isprintable() for line in lines):
        return yaml_string(text)
    return "|2\n" + "\n".join(" " * indent + line if line else "" for line in lines)


def _yaml_char(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("isoflop.launch", "templates"),
        autoescape=False,  # noqa: S701 - shell and YAML, not HTML: the filters quote
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"sh": shlex.quote, "yaml": yaml_string, "block": yaml_block}
    return found
