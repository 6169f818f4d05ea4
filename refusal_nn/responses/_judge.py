"""Measured completions, judged: refused or not, where they are coherent."""

from __future__ import annotations

import numpy as np
import xarray as xr

from refusal_nn import judges


def judge(measured: xr.Dataset, nll_limit: float | None) -> xr.Dataset:
    """Add ``coherent`` and ``refused`` to measured completions.

    Parameters
    ----------
    measured : xarray.Dataset
        ``completion``, ``n_tokens``, ``repetition`` and ``nll`` over ``(intervention, prompt)``.
    nll_limit : float or None
        Largest NLL of coherent text, nats a token; None where there was nothing to calibrate it on:
        then repetition decides alone, as it does for completions too short to have an NLL.

    Returns
    -------
    xarray.Dataset
        A completion that is not coherent, or empty, is not refused either. attrs ``nll_limit``.
    """
    dims = ("intervention", "prompt")
    texts = measured["completion"].transpose(*dims).values
    limit = np.inf if nll_limit is None else nll_limit
    coherent = judges.coherent(
        measured["repetition"].transpose(*dims), measured["nll"].transpose(*dims), limit
    )
    coherent &= measured["n_tokens"].transpose(*dims).values > 0
    matched = judges.substring(texts.ravel().tolist()).reshape(texts.shape)
    out = measured.assign(coherent=(dims, coherent), refused=(dims, matched & coherent))
    return out.assign_attrs(nll_limit=nll_limit)
