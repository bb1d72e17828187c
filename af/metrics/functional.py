"""The definitions of all metrics as plain functions: the stable names other code calls.

Clips are lists of (T_i, D) arrays or tensors at 25 fps; x = user, y = true avatar, ŷ = generated avatar. Undefined
values are NaN with an `UndefinedMetricWarning` that says why.
"""

from af.metrics.arrays import UndefinedMetricWarning
from af.metrics.audio import log_mel
from af.metrics.bootstrap import Interval, bootstrap, bootstrap_values
from af.metrics.coupling import LagCurve, pcc, rpcc, tlcc
from af.metrics.diversity import sid, var_ratio, variance
from af.metrics.frechet import fd, frechet_distance, kernel_distance, pfd
from af.metrics.identity import csim, l1, psnr, ssim
from af.metrics.latency import Latency, latency, real_time_factor
from af.metrics.lipsync import lip_corr, lip_lag, lip_sync, mouth_corr, speech_envelope
from af.metrics.reaction import React, ReactionGain, ReactionModel, react_correlation, react_nod, reaction_gain
from af.metrics.smoothness import Drift, border_ratio, drift, jerk, sharpness

__all__ = [
    "Drift",
    "Interval",
    "LagCurve",
    "Latency",
    "React",
    "ReactionGain",
    "ReactionModel",
    "UndefinedMetricWarning",
    "bootstrap",
    "bootstrap_values",
    "border_ratio",
    "csim",
    "drift",
    "fd",
    "frechet_distance",
    "jerk",
    "kernel_distance",
    "l1",
    "latency",
    "lip_corr",
    "lip_lag",
    "lip_sync",
    "log_mel",
    "mouth_corr",
    "pcc",
    "pfd",
    "psnr",
    "react_correlation",
    "react_nod",
    "reaction_gain",
    "real_time_factor",
    "rpcc",
    "sharpness",
    "sid",
    "speech_envelope",
    "ssim",
    "tlcc",
    "var_ratio",
    "variance",
]
