"""Job files: shells and YAML parsers read them, schemas of their systems know every key, what a user writes arrives."""

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError, validate
from pretended import GIVEN, RECIPES, STAYS, scripts

from isoflop.launch.job import TARGETS, Options, plan_job
from isoflop.launch.job_file import job_file, yaml_block, yaml_string
from isoflop.recipe import to_toml

FILES = [
    *((target, "pretrain", {}) for target in TARGETS if target != "ray"),
    ("kubernetes", "pretrain", {"kubeflow": True}),
    *((target, "sweep", {"gpus_per_node": 8}) for target in TARGETS),
    *((target, "sweep", {"nodes": 8, "gpus_per_node": 8}) for target in ("slurm", "kubernetes", "skypilot")),
    ("kubernetes", "sweep", {"nodes": 8, "kubeflow": True}),
]
NASTY = """it's "a" $HOME `id` \\ ; #x & {{ y }} : - \u00e9 \U0001f600"""


@pytest.mark.parametrize("target, kind, options", FILES)
def test_launch_files_parse_and_name_the_recipe(made, target, kind, options):
    text = made(target, kind, setup="source .venv/bin/activate", **options)
    assert "recipe.toml" in text and "{{" not in text and "{%" not in text
    for script in scripts(target, text):
        read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (read.returncode, read.stderr) == (0, "")
    command = "isoflop sweep" if kind == "sweep" else "isoflop train"
    assert command in text
    on_ray = target == "ray" or options.get("nodes", 1) > 1
    assert ("--engine ray --cluster auto" in text) == on_ray == ("RAY_AUTH" in text)


@pytest.mark.parametrize("target, kind, options", FILES)
def test_a_sweep_on_one_node_trains_one_cell_on_each_gpu(made, target, kind, options):
    text = made(target, kind, **options)
    one_node = kind == "sweep" and target != "ray" and options.get("nodes", 1) == 1
    assert ("ladder.workers=8" in text) == one_node


@pytest.mark.parametrize("nodes", [1, 3])
@pytest.mark.parametrize("target", ["slurm", "kubernetes", "kubeflow", "skypilot", "torchrun"])
def test_whatever_a_user_writes_arrives_as_it_is(made, cluster, tmp_path, target, nodes):
    if target == "torchrun" and nodes > 1:
        return
    kind, workdir = ("sweep", str(tmp_path / NASTY.replace("/", ""))) if nodes > 1 else ("pretrain", str(tmp_path))
    Path(workdir).mkdir(exist_ok=True)
    options = {} if target == "torchrun" else {"nodes": nodes}
    override = f"data.tokens={NASTY}"
    text = made(target, kind, (override,), out=NASTY, workdir=workdir, setup="export SEEN=x", **options)
    cluster.put("ray", STAYS)
    cluster.put("isoflop", f'printf "%s" "$PWD$SEEN" >{tmp_path}/where')
    node = {"JOB_COMPLETION_INDEX": "0", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "head", "SKYPILOT_NODE_RANK": "0"}
    code, errors = cluster.run(
        scripts(target, text)[0], SLURM_JOB_ID="7", SKYPILOT_NODE_IPS="head\nother", HOME=str(tmp_path), **node
    )
    assert code == 0, errors
    words = cluster.calls("torchrun")[0] if target == "torchrun" else ["isoflop", *cluster.calls("isoflop")[0]]
    words = words[words.index("isoflop") + 1 :]
    assert override in words and words[words.index("--out") + 1] == NASTY
    if target != "torchrun":
        assert (tmp_path / "where").read_text(encoding="utf-8") == workdir + "x"


@pytest.mark.parametrize("text", [NASTY, "a\nb", "tab\there", "\u2028 \x85 \x7f \ufeff", "", " ", "yes", "~", "1e3"])
def test_a_yaml_string_and_a_yaml_block_are_read_as_they_were_written(text):
    assert yaml.safe_load(f"a: {yaml_string(text)}") == {"a": text}
    block = f"{text}\n  indented\n\n{text}\n"
    assert yaml.safe_load(f"a:\n  b: {yaml_block(block, 4)}\n  c: 1\n") == {"a": {"b": block, "c": 1}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_kubernetes_carries_the_recipe_itself(tmp_path, encoding):
    recipe = tmp_path / "recipe.toml"
    recipe.write_bytes(f"# \u00e9\ttab\r\n{to_toml(RECIPES['sweep'])}".encode(encoding))
    text = job_file(plan_job("kubernetes", recipe, (), Options(**GIVEN["kubernetes"])))
    carried = tmp_path / "carried.toml"
    carried.write_text(next(iter(yaml.safe_load_all(text)))["data"]["recipe.toml"], encoding="utf-8", newline="")
    again = job_file(plan_job("kubernetes", carried, (), Options(**GIVEN["kubernetes"], name="recipe")))
    assert list(yaml.safe_load_all(text)) == list(yaml.safe_load_all(again))


def test_a_large_model_gets_more_time_to_save(made):
    tree = ("model.n_layers=30", "model.d_model=4096", "model.d_ff=11008")
    small, large = (yaml.safe_load_all(made("kubernetes", overrides=extra)) for extra in ((), tree))
    seconds = [list(found)[-1]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] for found in (small, large)]
    n_params = 30 * (4096 * (8 + 8 + 16) + 3 * 4096 * 11008)
    assert seconds[0] == 300 and 12 * n_params / 2e8 < seconds[1] < 12 * n_params / 2e8 + 400


@pytest.mark.parametrize("target, kind, options", [case for case in FILES if case[0] == "kubernetes"])
def test_every_key_of_a_kubernetes_file_is_in_the_published_types(made, target, kind, options):
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    job = list(yaml.safe_load_all(made(target, kind, **options)))[-1]
    api = models.TrainerV1alpha1TrainJob if options.get("kubeflow") else models.IoK8sApiBatchV1Job
    assert api.from_dict(job).to_dict() == job  # an unknown key is dropped
    pod = job["spec"]["template"]["spec"] if api is models.IoK8sApiBatchV1Job else job["spec"]["trainer"]
    (pod.get("containers") or [pod])[0]["imagee"] = "x"
    assert api.from_dict(job).to_dict() != job


@pytest.mark.parametrize("target, kind, options", [case for case in FILES if case[0] == "kubernetes"])
def test_kubernetes_files_are_valid_by_its_own_schema(made, target, kind, options):
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate (108 MB) is not installed")
    checked = [d for d in yaml.safe_load_all(made(target, kind, **options)) if d["kind"] != "TrainJob"]
    for document in checked:
        kubernetes.validate(document, "1.33", strict=True)
        document["metadata"]["nam"] = "x"
        with pytest.raises(kubernetes.ValidationError):
            kubernetes.validate(document, "1.33", strict=True)
    assert checked


@pytest.mark.parametrize("target, kind, options", [case for case in FILES if case[0] == "skypilot"])
def test_skypilot_takes_its_file(made, target, kind, options):
    schemas = pytest.importorskip("sky.utils.schemas", reason="skypilot is not installed")
    task = yaml.safe_load(made(target, kind, **options))
    validate(task, schemas.get_task_schema())
    validate(task["resources"], schemas.get_resources_schema())
    with pytest.raises(ValidationError):
        validate({**task, "num_node": 1}, schemas.get_task_schema())


def test_the_cluster_launcher_of_ray_takes_its_file(made):
    found = find_spec("ray")  # its import takes seconds
    if found is None or found.origin is None:
        pytest.skip("ray is not installed: isoflop[cluster]")
    schema = json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    cluster = yaml.safe_load(made("ray", "sweep", gpus_per_node=8))
    validate(cluster, schema)
    assert cluster["provider"]["worker_ips"] == ["worker-1", "worker-2"]
    with pytest.raises(ValidationError):
        validate({**cluster, "worker_ips": []}, schema)


def test_the_sweep_of_a_ray_file_stands_in_its_header(made, cluster, tmp_path):
    text = made("ray", "sweep", workdir=str(tmp_path), out=NASTY)
    (line,) = (line for line in text.splitlines() if "ray exec" in line)
    code, errors = cluster.run(line.removeprefix("#").replace("THIS_FILE", "job.yaml"))
    assert code == 0, errors
    (words,) = cluster.calls("ray")
    assert words[:3] == ["exec", "--tmux", "job.yaml"]
    code, errors = cluster.run(words[3])
    assert code == 0, errors
    recipe = os.fspath(tmp_path / "recipe.toml")
    assert cluster.calls("isoflop") == [["sweep", recipe, "--engine", "ray", "--cluster", "auto", "--out", NASTY]]
