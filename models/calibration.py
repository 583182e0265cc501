"""From what the trees say to what it means: the expected fraction of the best, learned on unseen workloads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lorien.models.metrics import FloatArray

KNOTS = 24
# Slope kept where the data show none, so that equal fractions never make two different candidates equal.
MIN_STEP = 1e-6


@dataclass(frozen=True)
class Calibration:
    """Strictly rising, piecewise linear map from raw scores to fractions.

    Parameters
    ----------
    raw, fraction : tuples of float, of one length
        The knots; ``fraction`` runs from 0 to 1.
    """

    raw: tuple[float, ...]
    fraction: tuple[float, ...]

    def __call__(self, raw: FloatArray) -> FloatArray:
        """Fractions in [0, 1], in the order of ``raw``."""
        return np.interp(raw, self.raw, self.fraction)


def calibrate(raw: FloatArray, value: FloatArray, weight: FloatArray) -> Calibration:
    """Isotonic regression of the value on the raw score, over quantiles of the raw score.

    Parameters
    ----------
    raw : array (rows,)
        Scores of rows whose workload the scoring model has not seen.
    value : array (rows,)
        Best latency of the workload over the row's; 0 for a failure.
    weight : array (rows,)
        How much a row counts.
    """
    order = np.argsort(raw, kind="stable")
    blocks: list[tuple[float, float, float]] = []  # raw, value, weight: means and sum
    for rows in np.array_split(order, min(KNOTS, len(order))):
        total = float(weight[rows].sum())
        block = (float(np.average(raw[rows], weights=weight[rows])), float(weight[rows] @ value[rows]) / total, total)
        # Pool adjacent violators: a block that is not above the one before it is averaged with it.
        while blocks and (blocks[-1][1] >= block[1] or blocks[-1][0] >= block[0]):
            before = blocks.pop()
            total = before[2] + block[2]
            block = (
                (before[0] * before[2] + block[0] * block[2]) / total,
                (before[1] * before[2] + block[1] * block[2]) / total,
                total,
            )
        blocks.append(block)
    # Beyond the data the map goes on to 0 and 1, far enough for no score to fall off either end.
    margin = max(1.0, float(raw.max() - raw.min()))
    knots = [blocks[0][0] - margin, *(block[0] for block in blocks), blocks[-1][0] + margin]
    fractions = np.array([0.0, *(block[1] for block in blocks), 1.0])
    rising = np.maximum.accumulate(fractions) + MIN_STEP * np.arange(len(fractions))
    rising = (rising - rising[0]) / (rising[-1] - rising[0])
    return Calibration(tuple(knots), tuple(rising.tolist()))
