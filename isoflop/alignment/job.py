"""What the runs of alignment have in common: how one begins, what makes it this one, and what it leaves at its end."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoflop.alignment.asked import ask
from isoflop.alignment.build import BEFORE, prepare, write_merged
from isoflop.alignment.page import write_page
from isoflop.alignment.recipe import Recipe, check, identity_tree
from isoflop.alignment.samples import Samples, digest, load_pairs
from isoflop.alignment.start import open_start, save_tokenizer
from isoflop.errors import CheckpointError, RecipeError
from isoflop.model.accounting import flops_per_token
from isoflop.model.transformer import Transformer
from isoflop.recipe import to_tree, write_json, write_recipe
from isoflop.training.checkpoint import saved
from isoflop.training.loop import Saving, StepPlan
from isoflop.training.optim import adamw
from isoflop.training.run import Built, Job
from isoflop.training.step_hooks import StepHook
from isoflop.training.workload import Workload


class AlignJob(Job):
    """A recipe of alignment as a run: a subclass says what is trained on, and how."""

    title: str
    """On the page of the run."""

    def __init__(
        self, recipe: Recipe, run_dir: Path, load: Callable[..., Samples] = load_pairs, *, train_blank: bool = False
    ) -> None:
        """Raises RecipeError, DataError and CheckpointError for what cannot be trained on or from."""
        check(recipe)
        if run_dir.resolve() == Path(recipe.initial.run).resolve():
            raise RecipeError(f"--out {run_dir} is the run that initial.run names; give another folder")
        self.run_dir = run_dir
        self.start = open_start(recipe.initial, recipe.data.template, train_blank=train_blank)
        if not self.start.template.closes_answers:
            raise RecipeError(
                f"data.template: {self.start.template.name} ends an answer with no special token of its own, so a "
                "model trained on it never learns to stop; give a template that writes one behind each answer"
            )
        config, t = self.start.config, recipe.train
        limit = recipe.data.max_tokens or config.seq_len
        if limit > config.seq_len:
            raise RecipeError(
                f"data.max_tokens = {limit} is more than the model's context of {config.seq_len}; 0 uses that"
            )
        self.samples = load(recipe.data, self.start.template, max_tokens=limit, seed=t.seed)
        self.valid: list[Any] = self.samples.valid[: recipe.validate.max_samples or None]
        found = {"checkpoint": str(self.start.checkpoint), "model_sha256": self.start.model_sha256}
        initial = dataclasses.replace(recipe.initial, **found)
        self.recipe = dataclasses.replace(recipe, initial=initial, model=config)
        n_steps = t.n_steps(len(self.samples.train))
        self.identity = {"trajectory": self._trajectory(), "n_steps": n_steps, "base_sha256": self.start.model_sha256}
        self.plan = StepPlan(
            n_steps,
            rate=lambda step: t.rate(step, n_steps),
            clip_norm=t.clip_norm,
            validate_every=recipe.validate.every_steps,
            graph=False,  # shapes differ from step to step
        )
        self.saving = Saving(recipe.checkpoint.every_steps, recipe.checkpoint.every_s, recipe.checkpoint.keep)

    def workload(self, model: Transformer, dtype: torch.dtype, hooks: list[StepHook]) -> tuple[nn.Module, Workload]:
        """What is trained of the model, and on what."""
        raise NotImplementedError

    def build(self) -> Built:
        for found in list(saved(self.run_dir / "checkpoints").values())[-1:]:  # else another run's recipe would be lost
            with contextlib.suppress(OSError, json.JSONDecodeError):  # damaged: said when it is loaded
                self.check_continues(json.loads((found / "state.json").read_text(encoding="utf-8")), found)
        body, dtype, hooks = prepare(self.recipe, self.start)
        # the recipe first, so that a killed run is known as one
        write_recipe(self.run_dir / "recipe.toml", self.recipe, header="resolved recipe of this run")
        self.samples.write(self.run_dir)
        save_tokenizer(self.start, self.run_dir)
        model, workload = self.workload(body, dtype, hooks)
        t = self.recipe.train
        betas = (t.beta1, t.beta2)
        optimizer = adamw(model, learning_rate=t.learning_rate, betas=betas, eps=t.eps, weight_decay=t.weight_decay)
        return Built(workload, model, optimizer, flops_per_token(self.start.config, "exact"), dtype)

    def initialise(self, model: nn.Module) -> None:
        write_json(self.run_dir / BEFORE, self.before(model))

    def before(self, model: nn.Module) -> dict[str, Any]:
        """What the model scores and says at step 0."""
        return {"answers": self._ask(model)}

    def check_continues(self, state: dict[str, Any], found: Path) -> None:
        base = state.get("base_sha256")
        if base != self.identity["base_sha256"]:
            raise CheckpointError(
                f"{found} was trained from the weights {str(base)[:12]}, this recipe starts from "
                f"{self.identity['base_sha256'][:12]}: adapters and moments belong to another base; give another run "
                "folder"
            )
        if state.get("trajectory") != self.identity["trajectory"]:
            raise CheckpointError(
                f"{found} was trained with another recipe or other data than this one; use the recipe.toml beside it, "
                "or another run folder"
            )

    def result(self, figures: dict[str, Any], validation: dict[str, object], built: Built) -> dict[str, Any]:
        result = {**self.identity, **figures, "samples": self.samples.summary, "template": self.start.template.name}
        if not validation:
            return result
        result |= {key: validation[key] for key in ("loss_nats", "accuracy") if key in validation}
        said = self.finish(built.model)
        shares = {key: said[key]["value"] for key in ("stop_share", "repetition_ratio") if key in said}
        result |= {"validation": validation, **shares}
        write_page(self.run_dir, self.title, self.recipe, result, said)
        return result

    def finish(self, model: nn.Module) -> dict[str, Any]:
        """What the model says at the end, written to answers.json; adapters are merged where the recipe asks for it."""
        said = self._ask(model)
        if self.recipe.adapter is not None and self.recipe.adapter.merge:
            assert isinstance(model, Transformer)
            write_merged(self.run_dir, self.start, model)
        write_json(self.run_dir / "answers.json", said)
        return said

    def _ask(self, model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, Transformer)
        return ask(model, self.start, self.samples.prompts, self.recipe.answers)

    def _trajectory(self) -> str:
        """Hash of all that decides the numbers of a run."""
        decides = {
            **identity_tree(to_tree(self.recipe)),
            "rows": digest(self.samples.train),
            "template": self.start.template.sha256,
            "tokenizer": self.start.tokenizer_sha256,
        }
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
