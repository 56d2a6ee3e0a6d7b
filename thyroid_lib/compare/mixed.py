"""A linear mixed model beside the bootstrap: it assumes more, and should tell the same story.

Bates, Mächler, Bolker & Walker, J. Stat. Softw. 67 (2015), on such models; fitted by statsmodels.
"""

import itertools
import warnings

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from thyroid_lib.compare.bootstrap import TAILS, Cube, cube, order_protocols


def mixed_model(scores: pd.DataFrame, *, metric: str = "dice") -> pd.DataFrame:
    """Compare models in pairs by a linear mixed model.

    `metric ~ model` with random effects of group, run and model × group, by restricted maximum
    likelihood (statsmodels). An effect that the study cannot tell from the model or from the noise
    is left out: runs where each model has one, or where each run tests one group; model × group
    where there is one run per group.

    Returns:
        One row per protocol and pair: a, b, difference, low, high (95 %, Wald), note ("" or why
        not to lean on it). NaN where no fit was possible; small studies never raise.
    """
    rows = []
    for protocol in order_protocols(scores["protocol"]):
        of = cube(scores, protocol, metric)
        estimate, covariance, note = fit_mixed(of)
        for i, j in itertools.combinations(range(len(of.models)), 2):
            gap = np.zeros(len(of.models))
            gap[i], gap[j] = 1, -1
            half = stats.norm.ppf(TAILS[1]) * np.sqrt(max(0.0, gap @ covariance @ gap))
            value = gap @ estimate
            rows.append(
                {"protocol": protocol, "a": of.models[i], "b": of.models[j], "difference": value,
                 "low": value - half, "high": value + half, "note": note}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["protocol", "a", "b", "difference", "low", "high", "note"])


def fit_mixed(of: Cube) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the models' means (M,), their covariance (M,M) and a note."""
    places = np.argwhere(~np.isnan(of.values))  # (N,4)
    table = pd.DataFrame(places, columns=["model", "fold", "seed", "group"]).astype(str)
    table["run"] = table["model"] + "-" + table["fold"] + "-" + table["seed"]
    table["model_group"] = table["model"] + "-" + table["group"]
    table["value"] = of.values[tuple(places.T)]
    enough = {"group": 2, "run": len(of.models) + 1, "model_group": 2}
    parts = {
        name: f"0 + C({name})"
        for name, least in enough.items()
        if least <= table[name].nunique() < len(table)
    }
    count = len(of.models)
    failed = np.full(count, np.nan), np.full((count, count), np.nan)
    if not parts:
        return *failed, "no fit: a single group and run per model"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told in the note, by rules that do not depend on luck
            fit = MixedLM.from_formula(
                "value ~ 0 + C(model)", table.assign(whole=1), groups="whole", re_formula="0",
                vc_formula=parts,
            ).fit(reml=True, method=["lbfgs", "powell"])  # fmt: skip
            estimate, covariance = fit.fe_params.to_numpy(), np.asarray(fit.cov_params())
    except (np.linalg.LinAlgError, ValueError, ZeroDivisionError) as error:
        return *failed, f"no fit ({type(error).__name__})"
    covariance = covariance[:count, :count]
    if not np.isfinite(covariance).all():
        return estimate, failed[1], "no standard errors: too few groups or runs"
    shares = zip(fit.model.exog_vc.names, fit.vcomp / fit.scale, strict=True)
    zero = [name for name, share in shares if share < 1e-4]
    note = f"estimated as zero: {', '.join(zero)}" if zero else ""
    return estimate, covariance, note if fit.converged else "did not converge"
