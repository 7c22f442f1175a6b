"""Grouping images without labels, every product on the core: k-means, Oja and Sanger's components, an autoencoder.

The published device's algorithm is not known; these three need nothing but matrix products and digital updates.
Source: optics.md A13, and A8 for why centres are centred: rows of weights that share a large mean put most of the
converter's range into what they have in common.

Shapes: M images, D pixels, K groups, C components.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from isoflop.in_situ.images import Images
from isoflop.in_situ.train import Reconstruct, TrainOptions, train_network
from isoflop.numerics.noise import NoiseKey
from isoflop.numerics.photonic import PhotonicProduct
from isoflop.numerics.section import NumericsSection, core_of

Multiply = Callable[[Tensor, Tensor], Tensor]
"""(x [M, D], w [K, D]) -> x w^T [M, K], in some number format."""


def digital(x_MD: Tensor, w_KD: Tensor) -> Tensor:
    """The exact product."""
    return x_MD @ w_KD.T


def on_core(numerics: NumericsSection, seed: int = 0) -> Multiply:
    """Products on the core that `numerics.photonic` describes; every call draws noise of its own."""
    product = PhotonicProduct(core_of(numerics.photonic), NoiseKey(seed, numerics.seed), 0).eval()

    def multiply(x_MD: Tensor, w_KD: Tensor) -> Tensor:
        with torch.no_grad():
            return product(x_MD, w_KD)

    return multiply


def kmeans(
    x_MD: Tensor, n_groups: int, *, seed: int, multiply: Multiply = digital, n_rounds: int = 30, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """(group of each image [M], centres [K, D]) after at most `n_rounds` rounds; stops when no image moves.

    Nearest centre = largest (mu_k - mean_j mu_j) . x - |mu_k|^2 / 2, one product for all images; the term left out is
    the same for every group. With `centred` = False the centres go onto the core as they are. Centres start as images
    that are far from each other (k-means++), and are updated digitally.
    """
    generator = torch.Generator().manual_seed(seed)
    centres_KD = _spread_out(x_MD, n_groups, generator)
    group_M = torch.full((len(x_MD),), -1)
    for _ in range(n_rounds):
        shift_D = centres_KD.mean(0) if centred else torch.zeros_like(centres_KD[0])
        score_MK = multiply(x_MD, centres_KD - shift_D) - centres_KD.square().sum(1) / 2
        nearest_M = score_MK.argmax(1)
        if torch.equal(nearest_M, group_M):
            break
        group_M = nearest_M
        counts_K = torch.bincount(group_M, minlength=n_groups)
        sums_KD = torch.zeros_like(centres_KD).index_add_(0, group_M, x_MD)
        empty_K = counts_K == 0  # an empty group starts over at some image
        centres_KD = torch.where(empty_K[:, None], centres_KD, sums_KD / counts_K.clamp(min=1)[:, None])
        if n_empty := int(empty_K.sum()):
            centres_KD[empty_K] = x_MD[torch.randint(len(x_MD), (n_empty,), generator=generator)]
    return group_M, centres_KD


def components(
    x_MD: Tensor,
    n_components: int,
    *,
    seed: int,
    multiply: Multiply = digital,
    n_epochs: int = 5,
    batch: int = 100,
    rate: float = 0.5,
    ordered: bool = True,
) -> tuple[Tensor, Tensor]:
    """(W [C, D], mean [D]): principal components by W += eta (y x^T - tril(y y^T) W), y = W x on the core.

    Sanger's rule; with `ordered` = False Oja's for a subspace (y y^T whole). `rate` is for data of mean square norm 1,
    to which the images are brought digitally; it falls to a tenth.
    """
    generator = torch.Generator().manual_seed(seed)
    mean_D = x_MD.mean(0)
    norm = (x_MD - mean_D).square().sum(1).mean().sqrt()
    w_CD = torch.randn(n_components, x_MD.shape[1], generator=generator) * x_MD.shape[1] ** -0.5
    per_epoch = len(x_MD) // batch
    for step in range(n_epochs * per_epoch):
        if step % per_epoch == 0:
            order_M = torch.randperm(len(x_MD), generator=generator)
        rows = order_M[(step % per_epoch) * batch :][:batch]
        z_BD = (x_MD[rows] - mean_D) / norm
        y_BC = multiply(z_BD, w_CD)
        eta = rate * 0.1 ** (step / (n_epochs * per_epoch))
        square_CC = y_BC.T @ y_BC
        taken_CC = square_CC.tril() if ordered else square_CC
        w_CD = w_CD + eta / batch * (y_BC.T @ z_BD - taken_CC @ w_CD)
    return w_CD, mean_D


def autoencoded(
    images: Images, numerics: NumericsSection | None, options: TrainOptions, *, d_inner: int = 128, d_latent: int = 10
) -> Tensor:
    """Signed codes [M, d_latent] of an autoencoder trained in situ on these images."""
    d = images.x.shape[1]
    network, _ = train_network(
        Reconstruct(images, images, options), (d, d_inner, d_latent, d_inner, d), numerics, signed=True
    )
    network.eval()
    with torch.no_grad():
        return torch.cat([network(part, until=2) for part in images.x.split(1000)])


def _spread_out(x_MD: Tensor, n_groups: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is an image drawn by its squared distance to the nearest one so far."""
    chosen = [int(torch.randint(len(x_MD), (), generator=generator))]
    square_M = x_MD.square().sum(1)
    nearest_M = torch.full((len(x_MD),), torch.inf)
    for _ in range(n_groups - 1):
        latest_D = x_MD[chosen[-1]]
        distance_M = (square_M - 2 * x_MD @ latest_D + latest_D.square().sum()).clamp(min=0)
        nearest_M = torch.minimum(nearest_M, distance_M)
        chosen.append(int(torch.multinomial(nearest_M, 1, generator=generator)))
    return x_MD[chosen].clone()
