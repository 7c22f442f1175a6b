"""Ridge regression against explicit refits."""

import pytest
import torch

from isoflop.imaging.ridge import fit_ridge


def problem(n: int, p: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + p)
    frames = torch.rand(n, p, generator=generator, dtype=torch.float64)
    truth = torch.randn(p, 7, generator=generator, dtype=torch.float64)
    return frames, frames @ truth + 0.5 * torch.randn(n, 7, generator=generator, dtype=torch.float64)


def refit(x: torch.Tensor, y: torch.Tensor, penalty: float, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    xc, yc = x - x.mean(0), y - y.mean(0)
    gram = xc.T @ xc + penalty * scale**2 * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, xc.T @ yc).T
    return weight, y.mean(0) - weight @ x.mean(0)


@pytest.mark.parametrize(("n", "p"), [(60, 20), (30, 50)])  # more pairs than pixels, and fewer
def test_solution_agrees_with_the_normal_equations(n, p):
    x, y = problem(n, p)
    found = fit_ridge(x, y)
    weight, bias = refit(x, y, found.penalty, float((x - x.mean(0)).std()))
    assert torch.allclose(found.weight.double(), weight, atol=1e-4)
    assert torch.allclose(found.bias.double(), bias, atol=1e-4)


@pytest.mark.parametrize(("n", "p"), [(60, 20), (30, 50)])
def test_left_out_predictions_are_those_of_fits_without_the_pair(n, p):
    x, y = problem(n, p)
    found = fit_ridge(x, y, (10.0,))
    scale = float((x - x.mean(0)).std())
    for row in (0, 7, n - 1):
        rest = torch.arange(n) != row
        # without a pair the mean moves too: an unpenalised bias, solved together with the weights
        ones = torch.ones(n, 1, dtype=x.dtype)
        design = torch.cat((x, ones), 1)
        ridge = 10.0 * scale**2 * torch.eye(p + 1, dtype=x.dtype)
        ridge[-1, -1] = 0.0
        solution = torch.linalg.solve(design[rest].T @ design[rest] + ridge, design[rest].T @ y[rest])
        assert torch.allclose(found.left_out[row].double(), design[row] @ solution, atol=1e-4)


def test_noise_asks_for_a_larger_penalty():
    x, y = problem(100, 80)
    noisy = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    assert fit_ridge(noisy, y).penalty > fit_ridge(x, y).penalty
