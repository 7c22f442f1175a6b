"""What a job can't be is refused, each with one message that says why and what to do."""

import pytest
from pretended import GIVEN, RECIPES, written

from isoflop.cli import main as cli
from isoflop.errors import RecipeError
from isoflop.launch.job import COMMANDS, Options, kind_of_recipe, plan_job, seconds_of
from isoflop.recipe import to_toml


@pytest.mark.parametrize(
    "job, options, message",
    [
        ("slrum", {}, "slrum is no kind of job file; did you mean slurm?"),
        ("slurm", {"nodes": 2}, "--nodes 2: isoflop train uses one GPU, since training over several GPUs"),
        ("kubernetes", {"gpus_per_node": 8}, "--gpus-per-node 8: isoflop train uses one GPU"),
        ("torchrun", {"gpus_per_node": 2}, "--gpus-per-node 2: isoflop train uses one GPU"),
        ("torchrun sweep", {"nodes": 2}, "--nodes has no effect on a torchrun file; leave it out (it is for slurm,"),
        ("ray", {}, "Ray runs the cells of a sweep, and this is a pretrain recipe; use isoflop launch slurm"),
        ("slurm", {"time": "1 day"}, "--time = '1 day' must be HH:MM:SS or D-HH:MM:SS, for example 24:00:00"),
        ("slurm", {"time": "2-24:00:00"}, "--time = '2-24:00:00' must be HH:MM:SS or D-HH:MM:SS"),
        ("slurm", {"time": "00:09:00"}, "--time 00:09:00 is less than twice --grace-s 300"),
        ("kubernetes", {"time": "24:00:00"}, "--time has no effect on a kubernetes file; leave it out"),
        ("slurm", {"image": "x"}, "--image has no effect on a slurm file; leave it out (it is for kubernetes,"),
        ("slurm", {"kubeflow": True}, "--kubeflow has no effect on a slurm file"),
        ("slurm", {"option": ("time=1",)}, "--option time=1: the file says time itself"),
        ("slurm", {"option": ("--mem=1G",)}, "must be an option of sbatch without its dashes"),
        ("slurm", {"option": ("comment=a b",)}, "must be an option of sbatch without its dashes"),
        ("slurm", {"partition": "a b"}, "--partition = 'a b' must be a name of letters"),
        ("slurm", {"name": "my run\n"}, "--name = 'my run\\n' must be one line of printable text"),
        ("slurm", {"name": "my $run"}, "lower-case letters, digits and dashes, a letter first; for example my-run"),
        ("slurm", {"out": ""}, "--out is empty; give a value or leave it out"),
        ("slurm", {"out": "a\nb"}, "--out = 'a\\nb' must be one line of printable text"),
        ("slurm", {"setup": "echo 'a"}, '--setup = "echo \'a" must be a whole shell line'),
        ("slurm", {"setup": "true # why"}, "must be a whole shell line: close its quotes, leave out comments"),
        ("slurm", {"setup": "true \\"}, "must be a whole shell line"),
        ("kubernetes", {"image": None}, "a kubernetes file needs --image IMAGE"),
        ("kubernetes", {"image": "a b"}, "--image = 'a b' must be the name of a container image"),
        ("kubernetes", {"volume": None}, "a kubernetes file needs --volume NAME, a PersistentVolumeClaim"),
        ("skypilot", {"volume": None}, "a skypilot file needs --volume NAME, a SkyPilot volume"),
        ("skypilot", {"volume": "s3://b"}, "--volume = 's3://b' is a bucket: checkpoints are renamed"),
        ("skypilot", {"accelerator": None}, "a skypilot file needs --accelerator NAME, for example H100"),
        ("skypilot", {"accelerator": "H100:8"}, "and 'H100:8' is none; their number is --gpus-per-node"),
        ("skypilot sweep", {"gpus_per_node": 0}, "--accelerator H100 contradicts a job without GPUs"),
        ("kubernetes sweep", {"out": "/elsewhere/x"}, "--out = '/elsewhere/x' lies outside the volume, which is"),
        ("kubernetes sweep", {"out": "../x"}, "--out = '../x' lies outside the volume, which is mounted at /work"),
        ("kubernetes sweep", {"workdir": "/"}, "--workdir = '/' is where the volume is mounted: give a folder of its"),
        ("kubernetes sweep", {"kubeflow": True, "restarts": 2}, "--restarts has no effect on a TrainJob; leave it out"),
        ("slurm sweep", {"out": "gs://bucket/x"}, "--out = 'gs://bucket/x' is a bucket: checkpoints are renamed"),
        ("skypilot", {"workdir": "work"}, "--workdir = 'work' is where the volume is mounted; begin it with /"),
        ("ray sweep", {"hosts": None}, "--hosts needs names with commas between, the head first"),
        ("ray sweep", {"hosts": "a,,b"}, "--hosts = 'a,,b' must be names with commas between"),
        ("ray sweep", {"hosts": "a,a"}, "--hosts = 'a,a' names a host twice"),
        ("ray sweep", {"user": "a b"}, "--user = 'a b' must be the name that logs in on the hosts"),
    ],
)
def test_a_job_that_cannot_be_is_refused(tmp_path, job, options, message):
    """`job`: the kind of file, and of recipe where it is not pretrain."""
    target, _, kind = job.partition(" ")
    with pytest.raises(RecipeError) as refused:
        plan_job(target, written(tmp_path, kind or "pretrain"), (), Options(**{**GIVEN.get(target, {}), **options}))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "overrides, options, message",
    [
        (("ladder.workers=2",), {"gpus_per_node": 8}, "ladder.workers=2 leaves GPUs idle: --gpus-per-node is 8"),
        (("train.device=cpu",), {"gpus_per_node": 1}, "--gpus-per-node 1 contradicts train.device = cpu"),
        (("engine.gpus_per_cell=2",), {}, "engine.gpus_per_cell = 2 must be at most 1: training over several GPUs"),
        (("ladder.wrkers=2",), {}, "unknown key ladder.wrkers; did you mean ladder.workers?"),
    ],
)
def test_overrides_that_contradict_the_options_are_refused(tmp_path, overrides, options, message):
    with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
        plan_job("slurm", written(tmp_path, "sweep"), overrides, Options(**options))


def test_a_model_that_does_not_fit_its_gpu_is_warned_of(tmp_path, caplog):
    recipe = tmp_path / "recipe.toml"
    large = {**RECIPES["pretrain"]["model"], "n_layers": 24, "d_model": 8192, "d_ff": 22016}
    for model, options, said in (
        (large, Options(), "GiB and the largest GPU known here (B200) has 168; a run uses one GPU: take"),
        (large | {"n_layers": 4}, Options(accelerator="L4", volume="v"), "GiB and L4 has 22; a run uses one GPU"),
        (large | {"n_layers": 4}, Options(accelerator="H100", volume="v"), ""),
        (large, Options(gpus_per_node=0), ""),
    ):
        recipe.write_text(to_toml({**RECIPES["pretrain"], "model": model}), encoding="utf-8")
        caplog.clear()
        plan_job("skypilot" if options.volume else "slurm", recipe, (), options)
        assert said in caplog.text and bool(said) == bool(caplog.text)


def test_workers_and_devices_of_the_recipe_are_kept_where_they_fit(tmp_path):
    recipe = written(tmp_path, "sweep")
    several = plan_job("slurm", recipe, ("ladder.workers=16",), Options(gpus_per_node=8))
    assert several.overrides == ("ladder.workers=16",)
    assert plan_job("slurm", recipe, ("train.device=cpu",), Options()).gpus_per_node == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["slurm"], "isoflop launch needs RECIPE; isoflop launch --help says more"),
        (["slurm", "nowhere.toml"], "recipe nowhere.toml does not exist"),
        (["slurm", "recipe.toml", "--nodes", "0"], "--nodes = 0 must be at least 1"),
        (["slurm", "recipe.toml", "--grace-s", "1"], "--grace-s = 1 must be at least 10"),
        (["slurm", "recipe.toml", "--nods", "2"], "--nods is not an option of isoflop launch; did you mean --nodes?"),
        (["slurm", "recipe.toml", "study=a\nb"], "must be one line of printable text"),
    ],
)
def test_bad_arguments_get_one_message(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "sweep")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["launch", *arguments])
    errors = capsys.readouterr()
    assert stopped.value.code == 2 and errors.out == ""
    assert message in errors.err and errors.err.count("isoflop: error:") == 1


def test_only_the_file_is_printed(capsys, tmp_path):
    recipe = str(written(tmp_path, "sweep"))
    cli.main(["launch", "slurm", recipe, "--option", "account=lab", "--option", "mem=64G", "ladder.n_sizes=4"])
    printed = capsys.readouterr().out
    assert printed.startswith("#!/usr/bin/env bash\n") and printed.endswith('exit "$status"\n')
    assert "#SBATCH --account=lab\n#SBATCH --mem=64G\n" in printed and " ladder.n_sizes=4 " in printed


@pytest.mark.parametrize("time, seconds", [("24:00:00", 86400), ("1-12:00:00", 129600), ("100:00:30", 360030)])
def test_a_time_limit_is_read_as_slurm_reads_it(time, seconds):
    assert seconds_of(time) == seconds


def test_the_kind_of_a_recipe_is_what_its_first_line_or_its_sections_say(tmp_path):
    recipe = tmp_path / "recipe.toml"
    for kind in COMMANDS:
        recipe.write_text(f"#:schema ../x/{kind}.json\nstudy = 'x'\n", encoding="utf-8")
        assert kind_of_recipe(recipe) == kind
    for kind, tree in RECIPES.items():
        recipe.write_text(to_toml(tree), encoding="utf-8")
        assert kind_of_recipe(recipe) == kind
    alike = {"initial": {"run": "runs/base"}, "data": {"train": ["a.jsonl"]}, "train": {"learning_rate": 1e-5}}
    recipe.write_text(to_toml({**alike, "dpo": {"beta": 0.2}}), encoding="utf-8")
    assert kind_of_recipe(recipe) == "dpo"
    recipe.write_text(to_toml(alike), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"may be of kind sft or dpo or reward; begin it with .* #:schema sft.json"):
        kind_of_recipe(recipe)
    recipe.write_text("#:schema ../x/tokens.json\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="is of kind tokens, which has no job file; kinds that have one: sweep"):
        kind_of_recipe(recipe)
    recipe.write_text("[nonsense]\nx = 1\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="has the sections of no recipe that a job runs"):
        kind_of_recipe(recipe)
