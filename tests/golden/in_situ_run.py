"""Training in situ has no command of its own: the one place of the goldens that imports inner modules."""

import json
from pathlib import Path
from typing import Any

import torch

from isoflop.in_situ.images import Images
from isoflop.in_situ.train import Classify, TrainOptions, train_network
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule

N_STEPS = 40


class Stopping(Classify):
    """Is killed when the batch of a step is asked for."""

    stop_at = N_STEPS

    def batch(self, step: int, rank: int = 0, world: int = 1):
        if step >= self.stop_at:
            raise KeyboardInterrupt
        return super().batch(step, rank, world)


def in_situ(run_dir: Path, stop_at: int = N_STEPS) -> dict[str, Any]:
    """Bars of two directions told apart by a network on a 6-bit core, both passes on it; returns loss and accuracy."""
    torch.set_num_threads(1)
    numbers = torch.arange(80)
    planes = torch.zeros(80, 6, 6)
    for index in range(80):
        place, shade = index // 2 % 5, 1.0 - 0.05 * (index % 7)
        if index % 2:
            planes[index, place : place + 2, :] = shade
        else:
            planes[index, :, place : place + 2] = shade
    images = Images(planes.flatten(1), numbers % 2, 6, 2)
    workload = Stopping(images, images, TrainOptions(n_epochs=N_STEPS // 4, batch=20, learning_rate=0.02))
    workload.stop_at = stop_at
    bits: dict[str, Any] = dict.fromkeys(("input_bits", "weight_bits", "adc_bits"), 6)
    core = NumericsSection((Rule("*", "photonic"),), photonic=PhotonicSection("lin2024", bits, "core"))
    model, _ = train_network(workload, (36, 8, 2), core, run_dir=run_dir)
    weights = {name: tensor.double().sum().item() for name, tensor in model.state_dict().items()}
    result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    return {"train_loss_nats": result["train_loss_nats"], "step": result["step"], "sums_of_weights": weights}
