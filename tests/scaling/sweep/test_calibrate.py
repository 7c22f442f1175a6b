"""A measured device: speeds of the right order, sizes over the range that a ladder may use."""

import pytest
import torch

from isoflop.errors import RecipeError
from isoflop.recipe import from_tree, to_tree
from isoflop.scaling.sweep import calibrate
from isoflop.scaling.sweep.calibrate import measure_ladder, measure_speed
from isoflop.scaling.sweep.family import DENSE, ExpertFamily, Family, LatentFamily
from isoflop.scaling.sweep.ladder import LadderRecipe, plan_ladder
from isoflop.scaling.sweep.shapes import shape
from isoflop.scaling.sweep.speed import SpeedModel


def small(d_model: int):
    return shape(d_model, vocab_size=64, seq_len=16)


@pytest.mark.dist
def test_two_processes_are_measured_and_larger_models_are_slower():
    speed = measure_speed([(small(8), 256), (small(64), 256), (small(128), 256)], workers=2, device="cpu", seconds=0.05)
    assert isinstance(speed, SpeedModel)
    rates = [speed(small(d), 256) for d in (8, 64, 128)]
    assert rates[0] > rates[2] and all(1e2 < rate < 1e9 for rate in rates)


@pytest.mark.parametrize("family", [DENSE, Family(experts=ExpertFamily(8, 2), latent=LatentFamily(), mtp_depth=1)])
def test_one_measurement_is_tokens_per_second_of_training_steps(family):
    config = shape(8, vocab_size=64, seq_len=16, family=family)
    (rate,) = calibrate._measure(([(to_tree(config), 256)], "cpu", 0.02), lambda: False)
    assert 1e2 < rate < 1e8


@pytest.mark.parametrize("section", [{"budgets": [1e12, 9e12]}, {"minutes": 3.0}])
def test_the_measured_sizes_span_what_the_ladder_may_use(monkeypatch, section):
    seen = {}

    def fake(shapes, **arguments):
        seen.update(arguments, shapes=shapes)
        return SpeedModel(per_step_s=2e-3, per_layer_s=5e-4, per_flop_s=1 / 45e9, per_param_s=0.0)

    monkeypatch.setattr(calibrate, "measure_speed", fake)
    tree = {"ladder": {**section, "workers": 2}, "train": {"device": "cpu"}, "model": {"seq_len": 64}}
    recipe = from_tree(tree, LadderRecipe)
    planned = plan_ladder(recipe, measure_ladder(recipe))
    scales = sorted(cell.flops_per_token for cell in planned.cells)
    from isoflop.model.accounting import flops_per_token

    measured = sorted(flops_per_token(config) for config, _ in seen["shapes"])
    assert len(measured) >= 3 and measured[0] <= 1.3 * scales[0] and measured[-1] >= scales[-1] / 1.3
    assert (seen["workers"], seen["threads"], seen["device"]) == (2, 1, "cpu")
    assert all(batch % 64 == 0 for _, batch in seen["shapes"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_one_clear_error():
    with pytest.raises(RecipeError, match="sees no GPU here"):
        calibrate.measure_speed([(small(8), 256)], device="cuda")
