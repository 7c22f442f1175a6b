"""The commands `export` and `import`: runs out to, and checkpoints in from, the Hugging Face format."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from isoflop.cli.arguments import Json, Writes
from isoflop.cli.console import flat, print_warnings, report_found
from isoflop.errors import CheckpointError, RecipeError
from isoflop.recipe import NotNegativeInt, PositiveInt

Device = Annotated[str, Parameter(help="where the parity report computes: cpu, cuda")]


def export(
    run: Annotated[Path, Parameter(metavar="RUN", help="folder of train, import, sft, dpo, reward")],
    /,
    *,
    out: Annotated[Path, Writes("folder"), Parameter(metavar="DIR", help="new folder in the Hugging Face format")],
    format: Annotated[
        Literal["auto", "llama", "qwen2_moe", "deepseek", "deepseek_v2", "deepseek_v3"],
        Parameter(help="auto: the one that the model is"),
    ] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], Parameter(help="auto: as the checkpoint has it (float32 for a run)")
    ] = "auto",
    fp8: Annotated[bool, Parameter(help="FP8 matrices with a scale per block, as DeepSeek-V3 was released")] = False,
    shard_mib: Annotated[PositiveInt, Parameter(help="largest shard, but for a single larger tensor")] = 512,
    drop_mtp: Annotated[bool, Parameter(help="leave out multi-token prediction modules")] = False,
    step: Annotated[NotNegativeInt | None, Parameter(help="checkpoint of this step; default: the newest")] = None,
    tokenizer: Annotated[
        Path | None, Parameter(metavar="DIR", help="default: the import's, or that of the run's tokens folder")
    ] = None,
    adapter: Annotated[bool, Parameter(help="only the adapters of a run that has some, as peft loads them")] = False,
    base: Annotated[str, Parameter(help="with --adapter: the base model that the folder names")] = "",
    parity: Annotated[bool, Parameter(help="compare with transformers (needs memory for both models)")] = True,
    device: Device = "cpu",
    json: Json = None,
) -> None:
    """A run -> a folder that transformers, vLLM and lm-eval load, and the proof that it is the same model."""
    from isoflop.interop.export_hf import export_run
    from isoflop.interop.export_reward import export_reward, is_reward_run
    from isoflop.interop.parity import device_of

    how: dict[str, Any] = {"format": "" if format == "auto" else format, "dtype": dtype, "tokenizer": tokenizer}
    if is_reward_run(run):
        given = {"--adapter": adapter, "--base": base, "--fp8": fp8, "--drop-mtp": drop_mtp, "--step": step is not None}
        if unknown := [name for name, value in {**given, "--shard-mib": shard_mib != 512}.items() if value]:
            raise RecipeError(f"{unknown[0]} has no meaning for a reward model ({run}); leave it out")
        found = export_reward(run, out, **how, parity=parity, device=device_of(device, parity=parity))
    elif adapter:
        from isoflop.interop.export_peft import export_peft

        found = export_peft(run, out, base=base)
        report_found(found, json, f"adapters in {out}", list(flat(found)))
        return
    elif base:
        raise RecipeError(f"--base {base} has no meaning without --adapter; leave it out")
    else:
        how |= {"fp8": fp8, "shard_mib": shard_mib, "drop_mtp": drop_mtp, "step": step}
        found = export_run(run, out, **how, parity=parity, device=device_of(device, parity=parity))
    report_found(found, json, f"{found['architecture']} in {out}", list(flat(found)))
    _judge(found, out / "parity.json")


def import_(
    folder: Annotated[Path, Parameter(metavar="DIR", help="Hugging Face folder")],
    /,
    *,
    out: Annotated[Path, Writes("folder"), Parameter(metavar="RUN", help="new run folder")],
    parity: Annotated[bool, Parameter(help="also compare with transformers")] = False,
    device: Device = "cpu",
    json: Json = None,
) -> None:
    """A folder in the Hugging Face format -> a run folder with a checkpoint of step 0."""
    from isoflop.interop.import_hf import import_folder
    from isoflop.interop.parity import device_of

    device = device_of(device, parity=parity)
    found = import_folder(folder, out)
    if parity:
        from isoflop.interop.parity import compare

        found["parity"] = compare(folder, device=device, report_to=out / "parity.json")
    rows = list(flat({key: value for key, value in found.items() if key != "config"}))
    report_found(found, json, f"run in {out}", rows)
    _judge(found, out / "parity.json")


def _judge(found: dict[str, Any], path: Path) -> None:
    report = found.get("parity", {})
    if report.get("status") == "skipped":
        print_warnings([f"no parity report: {report['reason']}"])
    what = "logits" if "greedy" in report else "scores"
    if report.get("status") == "close":
        print_warnings(
            [f"{what} differ by {report['relative_difference']:.1e} of the largest: more than small models do"]
        )
    if report.get("status") == "failed" and "greedy" not in report:
        raise CheckpointError(
            f"{path}: transformers gives other scores: they differ by {report['relative_difference']} of the largest "
            f"one (tolerance {report['tolerance']:.0e}); do not use the folder until this is resolved"
        )
    if report.get("status") == "failed":
        greedy = report["greedy"]
        raise CheckpointError(
            f"{path}: transformers computes something else: logits differ by {report['relative_difference']:.2e} of "
            f"the largest one (tolerance {report['tolerance']:.0e}), {greedy['equal']} of {greedy['prompts']} greedy "
            f"continuations are equal; do not use the folder until this is resolved"
        )
