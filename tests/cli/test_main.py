"""The real command line on bad input: one clear message, exit code 2, no traceback; and on good input, end to end."""

import contextlib
import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isoflop.cli import main as cli
from isoflop.cli.imaging import STAGES as IMAGING
from isoflop.recipe import to_toml, write_json, write_recipe
from isoflop.scaling.sweep.records import RunRecord, append_record

HEADER = "n_params,n_tokens,budget_flops,loss_nats"


@pytest.fixture
def files(tmp_path, tiny_recipe):
    """Writes TOML, text or tables under a temporary folder and returns the path."""

    def write(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else to_toml(content), encoding="utf-8")
        return path

    return write


def sweep_recipe(tokens: Path, **ladder: object) -> dict[str, Any]:
    return {
        "study": "test",
        "ladder": {"budgets": [1e12, 3e12], "n_sizes": 3, "size_span": 2.0, **ladder},
        "hyper": {"learning_rate": {"coefficient": 0.01}, "batch_tokens": {"coefficient": 256.0}},
        "model": {"vocab_size": 512, "seq_len": 16},
        "data": {"tokens": str(tokens)},
        "train": {"device": "cpu", "threads": 1},
    }


def test_a_missing_corpus_and_an_empty_folder_are_refused(refused, files, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        recipe = files("corpus.toml", {"sources": [{"path": str(tmp_path / name)}]})
        message = refused("corpus", "build", recipe, "--out", tmp_path / "out")
        assert name in message and not (tmp_path / "out").exists()


def test_tokens_of_a_corpus_that_is_not_there_are_refused(refused, files, tmp_path):
    recipe = files("tokens.toml", "# defaults")
    message = refused("tokens", recipe, "--corpus", tmp_path / "gone", "--out", tmp_path / "out")
    assert "gone has no manifest.json; make it with: isoflop corpus build RECIPE" in message


@pytest.mark.parametrize(
    "command, override, message",
    [
        ("train", "train.learning_rte=0.1", "unknown key train.learning_rte; did you mean train.learning_rate?"),
        ("train", "trian.seed=1", "unknown key trian; did you mean train?"),
        ("train", "train.seed=0.5", "train.seed = 0.5 must be a whole number"),
        ("train", "train.schedule=cosin", "cosine, constant_cooldown, constant; did you mean 'cosine'?"),
        ("train", "train.seed", "override 'train.seed' must read section.key=value"),
        ("train", "train.n_tokens=63", "train.n_tokens = 63 is less than one optimizer step"),
        ("train", "train.batch_tokens=65", "train.batch_tokens = 65 must be a multiple of model.seq_len = 16"),
        ("train", "data.tokenizer_sha256=0123456789abcdef", "the recipe is for another tokenizer"),
        ("train", "model.vocab_size=64", "set model.vocab_size = 512"),
        ("train", "data.tokens=nowhere/at/all", "nowhere/at/all has no manifest.json"),
        ("inspect", "model.d_head=3", "model.d_head = 3 must be even"),
        ("inspect", "model.n_kv_heads=3", "model.n_kv_heads = 3 must divide model.n_heads"),
    ],
)
def test_a_pretrain_recipe_that_cannot_be_is_refused(refused, files, tmp_path, tiny_tree, command, override, message):
    arguments = ["--out", tmp_path / "out"] if command == "train" else []
    assert message in refused(command, files("recipe.toml", tiny_tree), override, *arguments)


def test_a_recipe_of_another_kind_is_called_by_its_kind(refused, files, tiny_tree):
    recipe = files("sweep.toml", "#:schema ../schemas/sweep.json\n" + 'study = "x"\n')
    message = refused("train", recipe)
    assert message.endswith(f"{recipe} is a recipe of another command: isoflop sweep {recipe}")
    recipe = files("plain.toml", to_toml({"study": "x", "ladder": {"budgets": [1e12]}, "data": {"tokens": "t"}}))
    assert refused("train", recipe).endswith(f": isoflop sweep {recipe}")  # by its sections
    assert refused("train", files("none.toml", "\n")).endswith("none.toml is empty; isoflop keys says what it may hold")
    recipe = files("own.toml", "#:schema ../schemas/pretrain.json\n" + to_toml({"trian": {"seed": 1}}))
    assert refused("train", recipe).endswith("unknown key trian; did you mean train?")


def test_help_shows_defaults_as_they_are_typed_and_none_that_are_empty(capsys):
    with contextlib.suppress(SystemExit):
        cli.main(["fit", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "[default: 1000]" in text and "[default: ]" not in text and '""' not in text and "()" not in text


@pytest.mark.parametrize("command", ["ladder", "sweep"])
@pytest.mark.parametrize(
    "override, message",
    [
        ("ladder.n_sizes=2", "ladder.n_sizes = 2: an IsoFLOP curve needs at least 3 sizes per budget"),
        ("hyper.batch_tokens.coefficient=1e9", "budget 1e+12 is too small for one step of a model with"),
        ("ladder.budgets=[1e5,1e9]", "has no shape near it at seq_len = 16"),
        ("ladder.budgets=[3e9,1e9]", "must increase; sort them"),
        ("ladder.minutes=3", "give exactly one of ladder.budgets, ladder.minutes and ladder.gpu_hours"),
        ("train.schedule=cosine", 'needs train.schedule = "constant_cooldown"'),
        ("data.tokenizer_sha256=0123456789abcdef", "a recipe for another tokenizer"),
        ("ladder.n_sizs=5", "unknown key ladder.n_sizs; did you mean ladder.n_sizes?"),
        ("model.vocab_size=256", "model.vocab_size = 256 but the tokens of"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_is_measured(
    refused, files, tmp_path, tiny_tokens, monkeypatch, command, override, message
):
    monkeypatch.setattr("isoflop.scaling.sweep.calibrate.measure_ladder", lambda *_: pytest.fail("measured first"))
    recipe = files("sweep.toml", sweep_recipe(tiny_tokens))
    assert message in refused(command, recipe, override, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cluster", "auto"), "--cluster has no effect without --engine ray; leave it out"),
        (("--engine", "ray"), "needs Ray: pip install isoflop[cluster], or use --engine local"),
        (("--engine", "ray", "--cluster", "ray://a:1"), "run isoflop on a machine of the cluster"),
        (("engine.kind=ray", "engine.gpus_per_cell=2"), "training over several GPUs does not exist yet"),
        (("--engine", "slurm"), "--engine"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_in_one_message(
    refused, files, tmp_path, tiny_tokens, monkeypatch, words, message
):
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe = files("sweep.toml", sweep_recipe(tiny_tokens))
    assert message in refused("sweep", recipe, *words, "--out", tmp_path / "out", "--no-calibrate")
    assert not (tmp_path / "out" / "ladder.toml").exists()


def test_a_sweep_without_a_tokens_folder_is_refused(refused, files, tmp_path, tiny_tokens):
    recipe = files("sweep.toml", sweep_recipe(Path()))
    message = refused("sweep", recipe, 'data.tokens=""', "--out", tmp_path / "out", "--no-calibrate")
    assert "data.tokens" in message and "isoflop tokens" in message


def test_a_started_sweep_goes_on_with_its_budgets_and_another_one_is_refused_in_its_folder(
    refused, files, tmp_path, tiny_tokens, monkeypatch, capsys
):
    recipe, out, seen = files("sweep.toml", sweep_recipe(tiny_tokens)), tmp_path / "out", []

    def fake(cells, folder, **_):
        from isoflop.scaling.sweep.run import _check_same_ladder

        _check_same_ladder(cells, folder)
        seen.append([cell.cell_id for cell in cells])
        write_json(folder / "sweep.json", {})
        return [RunRecord(run_id=cell.cell_id, status="finished") for cell in cells]

    monkeypatch.setattr("isoflop.scaling.sweep.run.run_sweep", fake)
    for text in ("", "going on with"):
        cli.main(["sweep", str(recipe), "--out", str(out), "--no-calibrate"])
        assert text in capsys.readouterr().out
    assert len(seen) == 2 and seen[0] == seen[1]
    before = (out / "ladder.toml").read_bytes()
    assert "holds another ladder" in refused("sweep", recipe, "ladder.seeds=[1]", "--out", out, "--no-calibrate")
    assert "n_sizs" in refused("sweep", recipe, "ladder.n_sizs=5", "--out", out, "--no-calibrate")
    assert (out / "ladder.toml").read_bytes() == before
    cli.main(["sweep", str(recipe), "ladder.n_sizes=4", "--out", str(out), "--no-calibrate"])  # cells in common
    assert len(seen) == 3 and len(seen[2]) > len(seen[0]) and (out / "ladder.toml").read_bytes() != before


def test_minutes_without_a_measurement_are_refused(refused, files, tiny_tokens):
    recipe = files("sweep.toml", sweep_recipe(tiny_tokens, budgets=[], minutes=3.0))
    assert "need a measurement of the workers" in refused("ladder", recipe, "--dry-run", "--no-calibrate")


def table(rows) -> str:
    return "\n".join([HEADER, *(",".join(map(str, row)) for row in rows)]) + "\n"


def curve(budget: float, sizes, best: float) -> list[tuple[float, float, float, float]]:
    """One IsoFLOP curve in n_params with its bottom at `best`."""
    from math import log

    return [(n, budget / 6 / n, budget, 3.0 + 0.1 * log(n / best) ** 2) for n in sizes]


BUDGETS = (1e18, 4e18, 16e18)


def test_a_table_that_is_not_there_is_refused(refused, tmp_path):
    assert "none.csv does not exist" in refused("fit", tmp_path / "none.csv", "--law", "surface")
    assert "does not exist" in refused("fit", tmp_path / "none.jsonl", "--out", tmp_path / "laws.json")


def test_fit_without_any_table_is_refused(refused):
    assert "TABLE" in refused("fit")


def test_fewer_than_three_sizes_in_a_budget_are_refused(refused, files):
    rows = [row for budget in BUDGETS for row in curve(budget, (1e8, 2e8), 1.5e8)]
    message = refused("fit", files("runs.csv", table(rows)), "--law", "parabola")
    assert "3" in message and "size" in message


def test_vertices_outside_the_tested_range_are_refused(refused, files):
    rows = [row for budget in BUDGETS for row in curve(budget, (1e8, 2e8, 4e8), 4e9)]
    message = refused("fit", files("runs.csv", table(rows)), "--law", "parabola")
    assert "range" in message and "size" in message


def test_a_default_output_that_cannot_be_is_refused_before_the_fit(refused, files, tmp_path, monkeypatch):
    monkeypatch.setattr("isoflop.scaling.fit.run.fit_files", lambda *_, **__: pytest.fail("fitted first"))
    monkeypatch.chdir(tmp_path)
    path = files("runs.csv", table(curve(1e18, (1e8, 2e8, 4e8), 2e8)))
    (tmp_path / "runs").write_text("", encoding="utf-8")
    assert "--out runs/laws.json can't be written: Not a directory" in refused("fit", path)


def test_a_column_that_is_not_there_is_refused(refused, files):
    path = files("runs.csv", table(curve(1e18, (1e8, 2e8, 4e8), 2e8)))
    assert "there is no column colour" in refused("fit", path, "--law", "parabola", "--where", "colour=red")
    assert "there is no column" in refused("fit", path, "--law", "parabola", "--map", "n_params=params")


@pytest.mark.parametrize("content", ["", HEADER + "\n", HEADER + "\n1,2\n"])
def test_a_table_without_usable_rows_is_refused(refused, files, content):
    assert "runs.csv" in refused("fit", files("runs.csv", content), "--law", "surface")


def test_records_that_carry_no_law_are_refused(refused, tmp_path):
    append_record(tmp_path / "records.jsonl", RunRecord(run_id="one", status="finished"))
    assert refused("fit", tmp_path / "records.jsonl", "--out", tmp_path / "laws.json")


def test_a_plan_that_does_not_fit_the_stated_memory_is_refused(refused, tmp_path):
    out = tmp_path / "plan.toml"
    message = refused("plan", "deepseek", "--budget-flops", "1e24", "--memory-gib", "16", "--out", out)
    assert "GiB" in message and "16" in message and not out.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["deepseek"], "needs exactly one of --budget-flops, --gpu-hours, --hours and --days"),
        (["deepsek", "--budget-flops", "1e20"], "deepsek"),
        (["deepseek", "--budget-flops", "-1"], "--budget-flops = -1.0 must be above 0"),
        (["deepseek", "--gpu-hours", "10"], "hardware"),
        (["deepseek", "--gpu-hours", "10", "--hardware", "h1000"], "did you mean H100?"),
        (["deepseek", "--budget-flops", "1e20", "--hyper", "depseek"], "depseek"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(refused, tmp_path, arguments, message):
    assert message in refused("plan", *arguments, "--out", tmp_path / "plan.toml")


@pytest.mark.parametrize("command", ["plan", "next"])
def test_a_recipe_of_somebody_else_is_not_replaced(refused, tmp_path, command):
    mine = tmp_path / "mine.toml"
    mine.write_text("# isoflop train mine.toml\n\n[model]\n", encoding="utf-8")
    message = refused(command, "deepseek", "--budget-flops", "1e20", "--out", mine)
    assert f"--out {mine} is there and this command did not write it; give another name, or delete it" in message
    assert mine.read_text(encoding="utf-8") == "# isoflop train mine.toml\n\n[model]\n"


@pytest.mark.parametrize("command", ["score", "report"])
def test_a_folder_without_a_run_is_refused(refused, tmp_path, command):
    assert str(tmp_path) in refused(command, tmp_path)


def test_laws_that_are_not_there_or_not_laws_are_refused(refused, tmp_path):
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    assert "a.json" in refused("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert "b.json" in refused("compare", tmp_path / "b.json", tmp_path / "a.json")


@pytest.mark.parametrize(
    "arguments, suggestion",
    [
        (["train", "recipe.toml", "--ot", "x"], "--out"),
        (["train", "--otu", "runs/x", "recipe.toml"], "--otu is not an option of isoflop train; did you mean --out?"),
        (["fit", "t.csv", "--lw", "surface"], "--law"),
        (["fit", "t.csv", "--law", "surfce"], "surface"),
        (["trian", "recipe.toml"], "train"),
        (["corpus", "recipe.toml"], "isoflop corpus build"),
        (["corpus", "build", "recipe.toml", "--ot", "x"], "--out"),
        (["corpus", "bild"], "build"),
        (["zzz"], "isoflop --help lists"),
    ],
)
def test_a_mistyped_option_or_command_is_refused_with_what_there_is(refused, arguments, suggestion):
    assert suggestion in refused(*arguments)


def test_a_disk_error_outside_a_checkpoint_is_one_message_too(refused, files, tmp_path, tiny_tree, monkeypatch):
    def full(*_: object, **__: object):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr("isoflop.training.monitor.MetricsFile.write", full)
    message = refused("train", files("recipe.toml", tiny_tree), "--out", tmp_path / "out")
    assert "No space left on device: 'metrics.jsonl'" in message and "run the same command again" in message


def test_a_diverged_run_ends_with_its_reason_and_a_way_out(refused, files, tmp_path, tiny_tree):
    recipe = files("recipe.toml", tiny_tree)
    message = refused("train", recipe, "train.learning_rate=1e30", "train.warmup_steps=0", "--out", tmp_path / "out")
    assert "diverged at step" in message and "lower train.learning_rate" in message
    assert json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["status"] == "diverged"


def test_two_commands_in_one_folder_are_refused(refused, files, tmp_path, tiny_tree):
    from isoflop.run import only_one

    with only_one(tmp_path / "out"):
        message = refused("train", files("recipe.toml", tiny_tree), "--out", tmp_path / "out")
    assert "another process is working in" in message


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["fit", "--help"], ["predict", "--help"], ["imaging", "train", "--help"], ["keys", "train"]],
)
def test_help_imports_nothing_heavy(arguments):
    heavy = ("torch", "numpy", "scipy", "pydantic", "matplotlib")
    code = f"import sys; from isoflop.cli.main import main; main({arguments}); "
    code += f"print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands_in_the_order_of_the_data_flow(capsys, arguments):
    cli.main(arguments)
    text = capsys.readouterr().out
    order = ["corpus build", "tokens", "inspect", "ladder", "sweep", "fit"]
    order += ["predict", "next", "plan", "train", "extend", "passkey", "sft", "dpo", "reward", "align demo"]
    order += ["generate", "chat", "eval", "judge", "score", "export", "import", "compare", "report", "demo"]
    order += ["optics inspect", "optics demo"]
    order += [f"imaging {name}" for name in ("train", "evaluate", "sweep", "report", "demo")]
    order += ["launch", "keys", "schema"]
    shown = re.findall(r"^\W+([a-z]+(?: [a-z]+)?) +[A-Z]", text, flags=re.M)  # a name, then its sentence
    assert list(cli.COMMANDS) == order and shown == order


def test_commands_of_a_group_are_listed_by_its_name_alone(capsys):
    cli.main(["imaging"])
    assert re.findall(r"^\W+([a-z]+) +[A-Z]", capsys.readouterr().out, flags=re.M) == list(IMAGING)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_options_and_choices(capsys, shell):
    cli.main(["--show-completion", "--shell", shell])
    script = capsys.readouterr().out
    for word in ("imaging", "evaluate", "keep-weights", "micro-batch", "parabola"):
        assert word in script


def test_a_dry_run_counts_and_touches_nothing(files, tmp_path, tiny_tree, capsys):
    found = tmp_path / "found.json"
    recipe = files("recipe.toml", tiny_tree)
    cli.main(["train", str(recipe), "--dry-run", "--out", str(tmp_path / "out"), "--json", str(found)])
    counted = json.loads(found.read_text(encoding="utf-8"))
    assert counted["steps"] == 30 and counted["total_flops_exact"] == 30 * 64 * counted["flops_per_token"]["exact"]
    assert not (tmp_path / "out").exists() and "nothing was run" in capsys.readouterr().out
    rules = 'numerics.rules=[{modules="blocks.*", format="fp8_block"}]'
    cli.main(["train", str(recipe), rules, "numerics.until=0.8", "--dry-run", "--json", str(found)])
    assert counted | json.loads(found.read_text(encoding="utf-8")) == counted | {
        "numerics": "fp8_block 128 on blocks.* until 80%",
        "plain_from_step": 24,
    }


def test_a_dry_ladder_states_runs_flops_and_saving_and_writes_nothing(files, tmp_path, tiny_tokens, capsys):
    found, recipe, out = tmp_path / "found.json", files("sweep.toml", sweep_recipe(tiny_tokens)), tmp_path / "out"
    cli.main(["ladder", str(recipe), "--dry-run", "--no-calibrate", "--out", str(out), "--json", str(found)])
    summary = json.loads(found.read_text(encoding="utf-8"))["summary"]
    assert summary["n_runs"] == 6 and summary["saving"] > 1 and not out.exists()
    assert "n_runs" in capsys.readouterr().out


def test_train_and_score_from_the_command_line(files, tmp_path, tiny_tree, capsys):
    prediction = {
        "bits_per_byte": 4.0,
        "low": 3.0,
        "high": 5.0,
        "level": 0.9,
        "predicted_at": "2020-01-01T00:00:00+00:00",
        "largest_sweep_flops": 1e6,
    }
    recipe, out = files("recipe.toml", {**tiny_tree, "prediction": prediction}), tmp_path / "out"
    cli.main(["train", str(recipe), "--out", str(out), "--json", str(tmp_path / "run.json")])
    cli.main(["score", str(out), "--records", str(tmp_path / "records.jsonl")])
    run, score = (json.loads(path.read_text(encoding="utf-8")) for path in (tmp_path / "run.json", out / "score.json"))
    assert score["measured_bits_per_byte"] == run["bits_per_byte"] and score["predicted_bits_per_byte"] == 4.0
    assert "bits_per_byte" in capsys.readouterr().out


def test_scoring_needs_a_prediction_made_before_the_run(refused, tmp_path, tiny_recipe):
    from isoflop.training.pretrain.workload import run_pretrain

    recipe = tiny_recipe(train={"n_tokens": 128})
    run_pretrain(recipe, tmp_path / "run")
    assert "has no [prediction] section; write the recipe with isoflop plan" in refused("score", tmp_path / "run")
    late = {"bits_per_byte": 4.0, "low": 3.0, "high": 5.0, "predicted_at": "2999-01-01T00:00:00+00:00"}
    write_recipe(tmp_path / "run" / "recipe.toml", tiny_recipe(train={"n_tokens": 128}, prediction=late))
    assert "that is no prediction" in refused("score", tmp_path / "run")
    write_json(tmp_path / "run" / "result.json", {"status": "diverged"})
    assert "ended as diverged" in refused("score", tmp_path / "run")


def test_an_output_never_replaces_what_the_command_reads(refused, tmp_path):
    records = tmp_path / "records.jsonl"
    records.write_text("{}\n", encoding="utf-8")
    message = "is what the command reads; give another file"
    assert message in refused("fit", records, "--out", records)
    assert message in refused("fit", records, "--json", records)
    assert message in refused("plan", records, "--budget-flops", "1e12", "--out", tmp_path / "." / "records.jsonl")
    assert message in refused("plan", "deepseek", "--ladder", records, "--out", records)
    assert records.read_text(encoding="utf-8") == "{}\n"


def test_what_a_law_does_not_use_is_refused(refused, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("a\n1\n", encoding="utf-8")
    for law, option, value in (
        ("all", "--at-flops", "1e20"),
        ("all", "--group", "row"),
        ("surface", "--form", "clark"),
        ("surface", "--interpolation", "akima"),
        ("parabola", "--at-flops", "1e20"),
        ("power", "--out", str(tmp_path / "l.json")),
    ):
        assert f"{option} has no effect with --law {law}" in refused("fit", table, "--law", law, option, value)
    assert "--seq-len has no effect with --ladder" in refused("plan", "deepseek", "--ladder", table, "--seq-len", "9")
