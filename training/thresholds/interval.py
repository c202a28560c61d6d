"""What is known about the share of normal images that a threshold will flag: a 95 % interval, or why there is none.

Independent images: the share above a threshold with K of n scores above it lies between the limits of Clopper &
Pearson (*Biometrika* 26, 1934). Where the threshold is an order statistic this is exact whatever the distribution
(Wilks, *Annals of Mathematical Statistics* 12, 1941; David & Nagaraja, *Order Statistics*, 3rd ed. 2003, 2.3).

Grouped images (frames of one part, images of one day): n images tell as much as n / d independent ones.
1. d is Kish's design effect of "scores above the level": its variance between groups (the ratio estimator's,
   Cochran, *Sampling Techniques*, 3rd ed. 1977, eq. 11.30) over its variance were images independent. At the
   threshold too few images lie above to estimate it well, hence the largest one counts, of the levels that K, 2 K,
   4 K, ... images exceed, up to a quarter of them. It is at least 1 and at most what groups of copies have.
2. K and n are divided by d, n also by (t_{G-1} / t_{n-1})^2 for the G groups that estimate it (Korn & Graubard,
   *Survey Methodology* 24, 1998), and go into Clopper & Pearson's limits.
3. The upper limit is at least 1 - 0.025^(1/G): a share of groups up to that may have gone unseen.
4. Where the groups are windows of time and their mean scores rise or fall with it (Kendall & Gibbons, *Rank
   Correlation Methods*, 5th ed. 1990, ch. 4: Spearman's coefficient times sqrt(G - 1) is about standard normal), the
   images to come are not like these, and there is no interval.
With groups of one image all this is the first rule. `make interval-coverage` shows what holds how often.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
TREND = 3.29
"""Standard deviations of a rank correlation without a trend: beyond it lies one of a thousand."""
MIN_GROUPS = 20
"""The smallest number for which it was drawn how often an interval holds."""

Groups = NDArray[np.intp]


class RateInterval(NamedTuple):
    """The interval of the false-positive rate, or None and the reason."""

    limits: tuple[float, float] | None
    reason: str | None


def rate_interval(
    scores: NDArray[np.float32], threshold: np.float32, groups: Groups | None, *, in_time: bool = False
) -> RateInterval:
    """The 95 % interval for the share of new normal images, of new groups, that score above the threshold.

    Args:
        scores: float32 (n,), of normal images.
        threshold: found from these scores, or independently of them.
        groups: (n,), which group each image belongs to; None: images are independent.
        in_time: the groups' numbers follow time.
    """
    n = len(scores)
    above = int((scores > threshold).sum())
    if groups is None:
        return RateInterval(clopper_pearson(above, n), None)
    sizes = group_sizes(groups)
    count = len(sizes)
    if count < n and count < MIN_GROUPS:
        return RateInterval(
            None, f"no promise from too few groups: {count}; about {MIN_GROUPS} would do, 100 would say more"
        )
    correlation = trend(scores, groups) if in_time else 0.0
    if abs(correlation) * math.sqrt(count - 1) > TREND:
        return RateInterval(
            None,
            f"scores {'rise' if correlation > 0 else 'fall'} with time (rank correlation {correlation:.2f}): images "
            "to come will not be like these",
        )
    effect = design_effect(scores, above, groups)
    if count < n:
        effect *= float(special.stdtrit(count - 1, 1 - TAIL) / special.stdtrit(n - 1, 1 - TAIL)) ** 2
    low, high = clopper_pearson(above / effect, n / effect)
    return RateInterval((low, max(high, unseen_share(count))), None)


def clopper_pearson(above: float, n: float) -> tuple[float, float]:
    """Limits for the share of which `above` of `n` were seen; neither need be whole."""
    low = float(special.betaincinv(above, n - above + 1, TAIL)) if above > 0 else 0.0
    high = float(special.betaincinv(above + 1, n - above, 1 - TAIL)) if above < n else 1.0
    return low, high


def design_effect(scores: NDArray[np.float32], above: int, groups: Groups) -> float:
    """How many grouped images tell as much as one independent one; the module's docstring has the rule.

    Args:
        scores: float32 (n,).
        above: how many of them are above the threshold.
        groups: (n,).
    """
    n = len(scores)
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    largest = float((sizes.astype(np.float64) ** 2).sum() / n)
    if len(sizes) < 2:
        return largest
    descending = members[np.argsort(-scores, kind="stable")]
    effect, taken = 1.0, max(above, 1)
    while taken < n:
        share = taken / n
        exceeding = np.bincount(descending[:taken], minlength=len(sizes))
        between = len(sizes) / (len(sizes) - 1) * float(np.square(exceeding - share * sizes).sum())
        effect = max(effect, between / (n * share * (1 - share)))
        taken *= 2
        if taken > n / 4:
            break
    return min(effect, largest)


def trend(scores: NDArray[np.float32], groups: Groups) -> float:
    """Spearman's rank correlation of the groups' mean scores with their numbers, -1 to 1."""
    members, sizes = np.unique(groups, return_inverse=True, return_counts=True)[1:]
    means = np.bincount(members, weights=scores.astype(np.float64)) / sizes
    ranks = np.argsort(np.argsort(means, kind="stable"), kind="stable")
    return float(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) if len(ranks) > 1 else 0.0


def unseen_share(groups: int) -> float:
    """The largest share of groups of which, with probability 2.5 %, none is among so many."""
    return float(-math.expm1(math.log(TAIL) / groups))


def group_sizes(groups: Groups) -> NDArray[np.intp]:
    """How many images each group has."""
    sizes: NDArray[np.intp] = np.unique(groups, return_counts=True)[1]
    return sizes
