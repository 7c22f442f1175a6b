"""Attention while decoding: a layer's new tokens are written to its pages and attend to what the pages hold.

The model's layers call this in place of `attend` where they are given `Cached`; projections, norms and MLPs are those
of training. Pages and steps are in pages.py.

Shapes: N tokens of a step, R rows, W tokens of a row, T tokens of a chunk, S tokens attended to, H query heads, G
key/value heads, C channels of a head, L channels of a latent (with its rotary key, where the pages hold both).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from isoflop.model.attention import attend
from isoflop.model.config import LatentConfig
from isoflop.model.pages import LayerPages, Rows, Step
from isoflop.numerics.heads import rotate
from isoflop.numerics.linear import Linear


class Cached(NamedTuple):
    """What a layer is given in a cached step."""

    pages: LayerPages
    step: Step


class LatentDecoding(NamedTuple):
    """Latent attention to pages.

    Chunks of prompts make keys and values of all heads, as training does (naive form); rows of a few new tokens fold
    `kv_up` into queries and outputs instead (absorbed form) and attend to the latents themselves, one key head for
    all query heads. Both are the same function. Source: arXiv 2405.04434, section 2.1 and appendix C.
    """

    sizes: LatentConfig
    scale: float
    kv_up: Linear

    def attend(
        self, cached: Cached, q_NHC: Tensor, latent_NL: Tensor, k_rope_NC: Tensor, cos_NC: Tensor, sin_NC: Tensor
    ) -> Tensor:
        """Attention of a step's tokens, [N, H, channels of a value]."""
        pages, step = cached
        q_nope_NHC, q_rope_NHC = q_NHC.split((self.sizes.d_nope, self.sizes.d_rope), -1)
        q_rope_NHC = rotate(q_rope_NHC, cos_NC, sin_NC)
        # the latent is kept after its norm and the key after its turn, so nothing is computed twice
        pages.write(step, torch.cat((latent_NL[:, None], rotate(k_rope_NC[:, None], cos_NC, sin_NC)), -1))
        parts = []
        if step.rows is not None:
            rows = slice(step.rows.n_tokens)
            form = self._absorbed if self.kv_up.numerics is None else self._rows_naive  # else its format is bypassed
            parts.append(form(q_nope_NHC[rows], q_rope_NHC[rows], pages, step.rows))
        for chunk in step.chunks:
            q_BTHC = torch.cat((q_nope_NHC, q_rope_NHC), -1)[None, chunk.first : chunk.last]
            parts.append(self._naive(q_BTHC, pages.of_chunk(chunk)[0])[0])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _naive(self, q_BTHC: Tensor, kept_BS1L: Tensor, mask_B1TS: Tensor | None = None) -> Tensor:
        """Keys and values of every head, made from the latents that are kept."""
        n_heads = q_BTHC.shape[2]
        latent_BS1L, k_rope_BS1C = kept_BS1L.split((self.sizes.d_kv_latent, self.sizes.d_rope), -1)
        kv_BSHC = self.kv_up(latent_BS1L[:, :, 0]).unflatten(-1, (n_heads, -1))
        k_nope_BSHC, v_BSHC = kv_BSHC.split((self.sizes.d_nope, self.sizes.d_value), -1)
        k_BSHC = torch.cat((k_nope_BSHC, k_rope_BS1C.expand(-1, -1, n_heads, -1)), -1)
        q_BHTC, k_BHSC, v_BHSC = (part.transpose(1, 2) for part in (q_BTHC, k_BSHC, v_BSHC))
        return attend(q_BHTC, k_BHSC, v_BHSC, self.scale, mask_B1TS).transpose(1, 2)

    def _rows_naive(self, q_nope_NHC: Tensor, q_rope_NHC: Tensor, pages: LayerPages, rows: Rows) -> Tensor:
        """The naive form of a step's rows."""
        kept_RS1L = pages.of_rows(rows)[0]
        q_RWHC = torch.cat((q_nope_NHC, q_rope_NHC), -1).unflatten(0, (-1, rows.width))
        return self._naive(q_RWHC, kept_RS1L, rows.mask(kept_RS1L.shape[1], 1)).flatten(0, 1)

    def _absorbed(self, q_nope_NHC: Tensor, q_rope_NHC: Tensor, pages: LayerPages, rows: Rows) -> Tensor:
        """Scores against the latents themselves, values made from the mixed latent."""
        weight_HCL = self.kv_up.weight.to(q_nope_NHC.dtype).unflatten(0, (q_nope_NHC.shape[1], -1))
        k_up_HCL, v_up_HCL = weight_HCL.split((self.sizes.d_nope, self.sizes.d_value), 1)
        q_NHL = torch.cat((torch.einsum("nhc,hcl->nhl", q_nope_NHC, k_up_HCL), q_rope_NHC), -1)
        return torch.einsum("nhl,hcl->nhc", pages.attend_rows(rows, q_NHL, self.scale), v_up_HCL)
