"""`isoflop fit TABLE` and `isoflop predict`: any table to laws, laws to losses with intervals, one entry a row."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from isoflop.cli import main as cli
from isoflop.scaling.laws import Laws, Surface
from isoflop.scaling.plan.allocate import best_split
from isoflop.scaling.plan.predict import predict

TRUTH = Surface(1.8, 480.0, 2085.0, 0.35, 0.37)
KEYS = ["n_params", "n_tokens", "total_flops", "center", "low", "high", "by_law"]


def sweep() -> list[tuple[float, float, float]]:
    """Six sizes at each of four budgets, with noise of 0.2%."""
    generator = np.random.default_rng(0)
    rows = []
    for flops in np.geomspace(1e18, 1e20, 4):
        for size in TRUTH.optimum(flops, 6.0)[0] * np.geomspace(0.4, 2.5, 6):
            loss = float(TRUTH.loss(size, flops / 6 / size)) * (1 + 0.002 * generator.standard_normal())
            rows.append((float(size), float(flops / 6 / size), loss))
    return rows


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Laws of a tracker's export with decimal commas, and the run of the command."""
    folder = tmp_path_factory.mktemp("fit")
    lines = [f"{n:.6e};{d:.6e};{y:.9f}".replace(".", ",") for n, d, y in sweep()]
    (folder / "export.txt").write_text("\n".join(["Model Size;train/tokens;val/loss", *lines]) + "\n")
    mapping = "n_params=Model Size,n_tokens=train/tokens,loss_nats=val/loss"
    code = "import sys; from isoflop.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    asked = ("fit", "export.txt", "--map", mapping, "--bootstrap", "120", "--out", "laws.json")
    done = subprocess.run([sys.executable, "-c", code, *asked], cwd=folder, capture_output=True, text=True, check=True)
    return folder / "laws.json", done.stdout


def asked(laws, *options):
    """What `isoflop predict` writes."""
    out = laws.parent / "found.json"
    cli.main(["predict", str(laws), *map(str, options), "--json", str(out)])
    return json.loads(out.read_text())


def test_what_was_inferred_is_printed_and_stored_with_the_laws(fitted):
    path, printed = fitted
    laws = Laws.read(path)
    assert any("separated by semicolons" in text for text in laws.inferences)
    assert any("column val/loss: '" in text and "(export.txt line 2) read as" in text for text in laws.inferences)
    assert all(f"inferred: {text}" in printed for text in laws.inferences)
    assert laws.conventions["loss_nats"] == "= val/loss" and laws.loss == "loss_nats"


def test_a_run_of_a_size_and_tokens_is_predicted_with_the_laws_side_by_side(fitted):
    path, _ = fitted
    found = asked(path, "--n-params", 7e9, "--n-tokens", 2e11)
    assert list(found) == ["unit", "level", "predictions"] and (found["unit"], found["level"]) == ("nats", 0.9)
    (row,) = found["predictions"]
    made = predict(Laws.read(path), 7e9, 2e11)
    assert list(row) == KEYS and row["total_flops"] == pytest.approx(6 * 7e9 * 2e11)
    assert (row["center"], row["low"], row["high"], row["by_law"]) == (made.center, made.low, made.high, made.by_law)
    assert row["low"] < float(TRUTH.loss(7e9, 2e11)) < row["high"]
    wider = asked(path, "--n-params", 7e9, "--n-tokens", 2e11, "--level", 0.99)["predictions"][0]
    assert wider["high"] - wider["low"] > row["high"] - row["low"]


def test_compute_alone_is_a_run_at_the_optimum(fitted):
    path, _ = fitted
    (row,) = asked(path, "--budget-flops", 1e22)["predictions"]
    split = best_split(Laws.read(path), 1e22)
    assert (row["n_params"], row["n_tokens"]) == pytest.approx((split.scale, split.n_tokens))
    assert row["total_flops"] == pytest.approx(1e22)


def test_a_forecast_far_beyond_the_sweep_says_how_far(fitted, capsys):
    path, _ = fitted
    for command in ("predict", "next"):
        out = ["--out", str(path.parent / "next.toml")] if command == "next" else []
        cli.main([command, str(path), "--budget-flops", "1e40", *out])
        said = r"1e\+40 FLOPs are 1e\+20 times the largest run of the sweep .* checked at about 100 times, 400 at most"
        assert re.search(said, capsys.readouterr().out)
        cli.main([command, str(path), "--budget-flops", "9e21", *out])
        assert "checked at" not in capsys.readouterr().out


def test_every_row_of_a_table_keeps_its_place_and_one_that_cannot_be_predicted_says_why(fitted):
    path, _ = fitted
    runs = path.parent / "runs.csv"
    runs.write_text("N,D,C\n70M,1.4e9,\n7B,N/A,6e21\n1e9,,\nbig,2e12,\n,,1e22\n350,2e12,\n1e9,2e10,\n,,1e99\n")
    found = asked(path, "--runs", runs, "--map", "n_params=N,n_tokens=D,total_flops=C")["predictions"]
    assert [row["center"] is None for row in found] == [False, False, True, True, False, True, False, True]
    assert [row["n_params"] for row in found[:2]] == [7e7, 7e9] and found[1]["n_tokens"] == pytest.approx(1e12 / 7)
    reasons = [row["reason"] for row in found if row["center"] is None]
    assert ["runs.csv line 4" in reasons[0], "line 5" in reasons[1], "line 7" in reasons[2]] == [True] * 3
    assert "column N, runs.csv line 5: big is no number" in reasons[1] and "n_params = 350" in reasons[2]
    assert "line 9: total_flops = 1e+99 must be at most 1e+50; correct its unit" in reasons[3]
    assert all(set(KEYS) <= set(row) for row in found)


def test_laws_of_perplexity_predict_perplexity(fitted):
    path, _ = fitted
    table = path.parent / "ppl.csv"
    table.write_text("\n".join(["n_params,n_tokens,ppl", *(f"{n!r},{d!r},{math.exp(y)!r}" for n, d, y in sweep())]))
    laws = path.parent / "ppl.json"
    cli.main(["fit", str(table), "--map", "perplexity=ppl", "--bootstrap", "120", "--out", str(laws)])
    found = asked(laws, "--n-params", 7e9, "--n-tokens", 2e11)
    nats = predict(Laws.read(laws), 7e9, 2e11)
    assert found["unit"] == "perplexity"
    assert found["predictions"][0]["center"] == pytest.approx(math.exp(nats.center))
    assert found["predictions"][0]["low"] < found["predictions"][0]["high"]


def test_laws_that_count_flops_per_token_name_what_they_need(fitted, refused):
    path, _ = fitted
    rows = [f"{6 * n!r},{d!r},{y / 2.9!r}" for n, d, y in sweep()]
    (path.parent / "m.csv").write_text("\n".join(["flops_per_token,n_tokens,bits_per_byte", *rows]))
    laws = path.parent / "m.json"
    cli.main(["fit", str(path.parent / "m.csv"), "--bootstrap", "120", "--out", str(laws)])
    found = asked(laws, "--flops-per-token", 6e9, "--n-tokens", 2e10)
    assert found["unit"] == "bits_per_byte" and found["predictions"][0]["flops_per_token"] == 6e9
    message = refused("predict", laws, "--n-params", 7e9, "--n-tokens", 2e11)
    assert "the laws count size in FLOPs per token: fit them with --map n_params=..." in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --n-params and --n-tokens, or --budget-flops, or --runs TABLE"),
        (["--n-params", "7e9"], "known: n_params; a prediction needs n_params and n_tokens"),
        (["--n-params", "7e9", "--map", "n_params=N"], "--map has no effect without --runs"),
        (["--runs", "t.csv", "--n-tokens", "1e9"], "--n-tokens has no effect with --runs"),
        (["--runs", "none.csv"], "none.csv does not exist"),
        (["--budget-flops", "1e300"], "--budget-flops = 1e+300 must be above 0 and at most 1e+50"),
        (
            ["--n-params", "7e9", "--n-tokens", "1e9", "--level", "2"],
            "--level = 2.0 must be at least 0.5 and at most 0.999",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(fitted, refused, options, message):
    assert message in refused("predict", fitted[0], *options)


def test_published_laws_have_no_interval_and_say_so(refused):
    assert "no interval is available" in refused("predict", "chinchilla", "--n-params", "7e9", "--n-tokens", "1e9")


def test_what_map_names_is_what_is_fitted_where_a_table_has_both(tmp_path):
    rows = [f"{n!r},{7 * n!r},{d!r},{y!r},{y / 2.9!r}" for n, d, y in sweep()]
    head = "params,flops_per_token,n_tokens,loss,bits_per_byte"
    (tmp_path / "t.csv").write_text("\n".join([head, *rows]))
    cli.main(
        [
            *("fit", str(tmp_path / "t.csv"), "--map", "n_params=params,loss_nats=loss"),
            *("--bootstrap", "0", "--out", str(tmp_path / "laws.json")),
        ]
    )
    laws = Laws.read(tmp_path / "laws.json")
    assert (laws.scale, laws.loss) == ("n_params", "loss_nats")


def test_a_filtered_table_of_records_keeps_what_its_records_say(tmp_path):
    from places import ROOT

    records = ROOT / "docs" / "studies" / "h100" / "records.jsonl"
    whole, part = tmp_path / "whole.json", tmp_path / "part.json"
    cli.main(["fit", str(records), "--bootstrap", "0", "--out", str(whole)])
    cli.main(["fit", str(records), "--bootstrap", "0", "--where", "budget_flops<1e17", "--out", str(part)])
    assert Laws.read(whole).conventions == Laws.read(part).conventions
    assert {"flops", "attention", "tokenizer_sha256"} <= {*Laws.read(whole).conventions}
