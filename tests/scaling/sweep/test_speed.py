"""A few samples give the time of runs in between."""

import pytest

from isoflop.errors import RecipeError
from isoflop.scaling.sweep.shapes import shape
from isoflop.scaling.sweep.speed import Sample, SpeedModel

TRUTH = SpeedModel(per_step_s=4e-3, per_layer_s=1e-3, per_flop_s=1 / 45e9, per_param_s=2e-9)


def sample(d_model, batch_tokens, speed=TRUTH):
    config = shape(d_model, vocab_size=512, seq_len=64)
    return Sample(config, batch_tokens, speed(config, batch_tokens))


def test_fit_recovers_a_machine_that_obeys_the_model():
    samples = [sample(d, b) for d, b in ((16, 512), (32, 512), (64, 1024), (96, 2048), (128, 4096), (64, 8192))]
    found = SpeedModel.fit(samples)
    config = shape(48, vocab_size=512, seq_len=64)
    assert found(config, 1536) == pytest.approx(TRUTH(config, 1536), rel=1e-3)


def test_one_sample_scales_with_flops():
    found = SpeedModel.fit([sample(64, 1024)])
    known = sample(64, 1024)
    assert found(known.config, 1024) == pytest.approx(known.tokens_per_s)
    assert found(known.config, 4096) == pytest.approx(known.tokens_per_s)


def test_noise_never_gives_negative_costs():
    samples = [sample(d, 1024) for d in (16, 24, 32, 48, 64)]
    noisy = [Sample(s.config, s.batch_tokens, s.tokens_per_s * f) for s, f in zip(samples, (1.1, 0.9, 1.05, 1, 0.95))]
    found = SpeedModel.fit(noisy)
    assert min(found.per_step_s, found.per_layer_s, found.per_flop_s, found.per_param_s) >= 0
    assert all(found(s.config, s.batch_tokens) == pytest.approx(s.tokens_per_s, rel=0.25) for s in noisy)


def test_no_measurement_is_an_error_that_says_so():
    with pytest.raises(RecipeError, match="at least one sample"):
        SpeedModel.fit([])
