"""A linear mixed model of the group means (Bates et al., J. Stat. Softw. 67, 2015)."""

import itertools
import warnings

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from thyroid_lib.compare.bootstrap import TAILS, Cube, cubes, mark_groups


def mixed_model(scores: pd.DataFrame) -> pd.DataFrame:
    """Compare models in pairs by `dice ~ model`, fitted by restricted maximum likelihood.

    Random effects are group, run and model × group; one that cannot be told from the model or from
    the noise is left out. Returns one row per protocol and pair: a, b, difference, low, high (95 %,
    Wald), note (a reason to distrust it, or ""). NaN where no fit was possible.
    """
    rows = []
    for of in cubes(scores):
        (estimate, covariance, note), unit = fit_mixed(of), np.eye(len(of.models))
        for i, j in itertools.combinations(range(len(of.models)), 2):
            contrast = unit[i] - unit[j]
            variance = max(0.0, contrast @ covariance @ contrast)
            half, value = stats.norm.ppf(TAILS[1]) * np.sqrt(variance), contrast @ estimate
            pair = of.protocol, of.models[i], of.models[j]
            rows.append((*pair, value, value - half, value + half, note))
    columns = ["protocol", "a", "b", "difference", "low", "high", "note"]
    return mark_groups(pd.DataFrame(rows, columns=columns), scores)


def fit_mixed(of: Cube) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the models' means (M,), their covariance (M,M) and a note."""
    cells = np.argwhere(~np.isnan(of.values))  # (N,4)
    table = pd.DataFrame(cells, columns=["model", "fold", "seed", "group"]).astype(str)
    table["run"] = table["model"] + "-" + table["fold"] + "-" + table["seed"]
    table["model_group"] = table["model"] + "-" + table["group"]
    table["value"] = of.values[tuple(cells.T)]
    count = len(of.models)
    least = {"group": 2, "run": count + 1, "model_group": 2}  # levels
    kept = [name for name in least if least[name] <= table[name].nunique() < len(table)]
    failed = np.full(count, np.nan), np.full((count, count), np.nan)
    if not kept:
        return *failed, "no fit: a single group and run per model"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the note says it, by rules that repeat
            fit = MixedLM.from_formula(
                "value ~ 0 + C(model)", table.assign(whole=1), groups="whole", re_formula="0",
                vc_formula={name: f"0 + C({name})" for name in kept},
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
