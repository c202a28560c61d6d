"""The decision threshold, from scores of normal images that the model was not fitted on; a file for each method."""

from training.thresholds.best_f1 import BestF1
from training.thresholds.conformal import Conformal
from training.thresholds.cost_weighted import CostWeighted
from training.thresholds.family import Method, alarms_in_words, all_methods, choose_method, fit_threshold, in_words
from training.thresholds.interval import CONFIDENCE, MIN_GROUPS, Groups, rate_interval
from training.thresholds.labelled import Labelled, cross_fitted
from training.thresholds.mean_plus_k_std import MeanPlusKStd
from training.thresholds.peaks_over_threshold import PeaksOverThreshold
from training.thresholds.percentile import Percentile

__all__ = [
    "CONFIDENCE",
    "MIN_GROUPS",
    "BestF1",
    "Conformal",
    "CostWeighted",
    "Groups",
    "Labelled",
    "MeanPlusKStd",
    "Method",
    "PeaksOverThreshold",
    "Percentile",
    "alarms_in_words",
    "all_methods",
    "choose_method",
    "cross_fitted",
    "fit_threshold",
    "in_words",
    "rate_interval",
]
