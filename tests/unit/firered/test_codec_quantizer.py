from __future__ import annotations

import numpy as np
import torch

from firered.quantizer import ResidualQuantizer, latent_table
from tests.support.firered_codec import config, golden, random_codes, weights


def test_a_latent_is_the_sum_of_one_table_row_per_codebook() -> None:
    rvq = config().rvq
    table = latent_table(rvq, weights().scope("rvq"))
    rows = torch.from_numpy(golden()["decode/codes"]) + torch.arange(rvq.n_quantizers) * rvq.codebook_size
    assert np.abs(table[rows].sum(1).numpy() - golden()["decode/rvq_output"]).max() < 1e-5


def test_each_code_is_the_nearest_to_what_the_codebooks_before_left_over() -> None:
    rvq, scope = config().rvq, weights().scope("rvq")
    features = torch.randn(9, rvq.in_width, generator=torch.Generator().manual_seed(3))
    codes = ResidualQuantizer(rvq, scope)(features)
    residual = features.double() @ scope.take("input_proj.weight")[..., 0].T.double() + scope.take("input_proj.bias")
    table = latent_table(rvq, scope).view(rvq.n_quantizers, rvq.codebook_size, -1)
    for n in range(rvq.n_quantizers):
        quantizer = scope.scope(f"quantizers.{n}")
        inward = quantizer.take("in_project.weight")[..., 0].T.double()
        distances = torch.cdist(
            residual @ inward + quantizer.take("in_project.bias"), quantizer.take("codebook").double()
        )
        assert torch.equal(codes[:, n], distances.argmin(1))
        residual = residual - table[n, codes[:, n]]


def test_codes_reach_all_codebooks() -> None:
    features = torch.randn(300, config().rvq.in_width, generator=torch.Generator().manual_seed(4)) * 3
    codes = ResidualQuantizer(config().rvq, weights().scope("rvq"))(features)
    assert codes.shape == random_codes(300, 0).shape
    assert all(len(column.unique()) > 10 for column in codes.T)
