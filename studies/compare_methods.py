"""Scratch, Scratch', DA and TL beside what a researcher would pick instead, on the same splits.

    python studies/compare_methods.py --data-dir HEA_data --table-dir results
    python studies/compare_methods.py --splits 0-19 --percents 20 100 --methods scratch tl ce gp
    python studies/compare_methods.py --backend dask --scheduler tcp://host:8786

Reads the occupation tables of structure_stat.py. Peers, on the networks' twelve inputs and the same
rows: the cluster expansion alone (ce, on the structure's own clusters), Gaussian process with an
anisotropic Matérn kernel (gp), support vector regression (svr), random forest (rf), gradient
boosting (gb); each chooses its hyperparameters inside the training set. Networks count as the
ensemble mean over SEEDS.

Writes to RESULTS_DIR: parts/ (one file per piece of work; what is there is not done again, so an
interrupted run goes on where it was), comparison.csv (tidy, a row per method, rule and split),
comparison.md, learning_curve.png and paired.png.
"""

import os
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
from scipy.stats import t as student
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import committee
import common
import generate
import main as scratch
import main_transfer as transfer
import networks
import report

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results/compare"  # folder for what this script writes
METHODS = "scratch scratch_prime da tl tl_committee ce gp svr rf gb"  # which to compare
TARGETS = "Ef Ms"  # Ef, Ms
ALLOY_SETS = "4+5 Total"  # 4+5, Total
PERCENTS = "0 20 40 60 80 100"  # shares of the training set's four- and five-element alloys
SPLITS = "0-19"  # random splits into training and test set
SEEDS = "0-3"  # networks per split
RULES = "validation reference"  # how networks choose their epoch: validation, reference
BACKEND = "loky"  # joblib's: loky (this machine's cores), threading, dask or ray
SCHEDULER = None  # address of the Dask scheduler or Ray cluster; None: one on this machine
# --------------------------------------------------------------------------------------------------

CHUNK = 5  # splits per piece of work: the networks of all train side by side
LABELS = {
    "scratch": "Scratch", "scratch_prime": "Scratch′", "da": "DA", "tl": "TL",
    "tl_committee": "TL committee", "ce": "CE alone",
    "gp": "Gaussian process", "svr": "support vectors", "rf": "random forest", "gb": "gradient boosting",
}  # fmt: skip
NETWORKS = {"scratch": scratch, "scratch_prime": scratch, "da": transfer, "tl": transfer}
KEYS = ["alloys", "target", "percent", "method", "rule"]


# ---- the peers: (settings, data, training rows, test rows, split number) -> predictions ----------


def predict_ce(settings, data, train, test, number):
    """A ridge per phase on points, pairs and triplets; its penalty by leave-one-out in training."""
    from sklearn.linear_model import RidgeCV

    columns = generate.ce_columns(data.system, settings.CLUSTERS)
    inputs, phases = data.table[columns].to_numpy(), data.table.phase.to_numpy()
    predicted = np.empty(len(test))
    for phase in common.phases_of(data.table):
        rows, of_test = train[phases[train] == phase], phases[test] == phase
        model = RidgeCV(alphas=np.logspace(-6, 1, 15)).fit(inputs[rows], data.targets[rows])
        predicted[of_test] = model.predict(inputs[test[of_test]])
    return predicted


def predict_gp(settings, data, train, test, number):
    """Matérn kernel with a length per input, and noise; smoothness 3/2 or 5/2 by likelihood."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    scalers = networks.Scalers.fit(data.inputs[train], data.targets[train])
    inputs, targets = scalers.transform(data.inputs[train], data.targets[train])
    models = []
    for nu in (1.5, 2.5):
        lengths = np.full(inputs.shape[1], 3.0)
        kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(lengths, (1e-1, 1e3), nu) + WhiteKernel(
            0.1, (1e-4, 1)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: an input of no use
            models.append(GaussianProcessRegressor(kernel).fit(inputs, targets))
    best = max(models, key=lambda model: model.log_marginal_likelihood_value_)
    scaled = best.predict(scalers.inputs.transform(data.inputs[test]))
    return scalers.target.inverse_transform(scaled[:, None])[:, 0]


def predict_by_search(model, grid):
    """A peer of scikit-learn: standardised, the best of the grid by five-fold cross-validation."""

    def predict(settings, data, train, test, number):
        from sklearn.model_selection import GridSearchCV, KFold

        scalers = networks.Scalers.fit(data.inputs[train], data.targets[train])
        folds = KFold(5, shuffle=True, random_state=number)
        search = GridSearchCV(model(number), grid, cv=folds, scoring="neg_mean_squared_error")
        search.fit(*scalers.transform(data.inputs[train], data.targets[train]))
        scaled = search.predict(scalers.inputs.transform(data.inputs[test]))
        return scalers.target.inverse_transform(scaled[:, None])[:, 0]

    return predict


def support_vectors(number):
    from sklearn.svm import SVR

    return SVR()


def forest(number):
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(100, random_state=number)


def boosting(number):
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(subsample=0.5, random_state=number)


PEERS = {
    "ce": predict_ce,
    "gp": predict_gp,
    "svr": predict_by_search(
        support_vectors, {"C": [1, 3, 10, 30, 100], "gamma": [0.01, 0.03, 0.1], "epsilon": [0.02, 0.1, 0.2]}
    ),
    "rf": predict_by_search(forest, {"max_features": [0.3, 0.6, 1.0]}),
    "gb": predict_by_search(
        boosting, {"max_depth": [2, 4], "n_estimators": [200, 600], "learning_rate": [0.05]}
    ),
}


# ---- one piece of work ---------------------------------------------------------------------------


def work(settings, data, piece):
    """Fit a method on a chunk of splits: rows of the tidy table."""
    started = time.time()
    script = NETWORKS.get(piece["method"])
    own = {name: value for name, value in vars(script or transfer).items() if name in common.OPTIONS}
    # The script's own defaults, read as its flags would be.
    run = {name: common.OPTIONS[name](str(value)) for name, value in own.items()}
    run |= {
        "TABLE_DIR": settings.TABLE_DIR, "DATA_DIR": settings.DATA_DIR, "METHOD": piece["method"],
        "TARGET": piece["target"], "ALLOYS": piece["alloys"], "PERCENT": piece["percent"],
        "SEEDS": settings.SEEDS, "SPLITS": piece["splits"], "SELECT_BY": piece["rule"], "DEVICE": "cpu",
    }  # fmt: skip
    run = SimpleNamespace(**run)
    data = data._replace(targets=data.table[common.TARGETS[run.TARGET]].to_numpy())
    splits = common.make_splits(run, data.table, high_only=piece["method"] == "scratch_prime")
    if script:
        model = networks.fit_selected(run, data, splits, script.fit)
        predicted = [p[:, split.test] for p, split in zip(networks.predict(model, data.inputs), splits)]
    elif piece["method"] == "tl_committee":
        run.SEEDS = run.SEEDS[:1]  # an ensemble of networks each
        outcome = committee.fit(run, data, splits)
        predicted = [p[:, split.test] for p, split in zip(outcome.predicted, splits)]
    else:
        predict = PEERS[piece["method"]]
        predicted = [predict(run, data, split.train, split.test, split.number)[None] for split in splits]
    rows = []
    for i, (split, values) in enumerate(zip(splits, predicted)):
        true = data.targets[split.test]
        within = np.nan
        if piece["method"] == "tl_committee":
            within = (np.abs(true - values.mean(0)) <= outcome.half_widths[i, split.test]).mean()
        ensemble, single = report.scores(true, values.mean(0), 1), [report.scores(true, v, 1) for v in values]
        rows.append(
            {name: piece[name] for name in KEYS}
            | {"split": split.number, "n_train": len(split.train), "n_test": len(split.test)}
            | {name: ensemble[name] for name in ("R2", "RMSE", "MAE")}
            | {f"single_{name}": np.mean([one[name] for one in single]) for name in ("R2", "RMSE", "MAE")}
            | {"within_90": within, "seconds": (time.time() - started) / len(splits)}
        )
    return pd.DataFrame(rows)


def pieces_of(settings):
    """All pieces of work, the most asked-for first: dicts with KEYS and splits."""
    pieces = []
    for alloys in settings.ALLOY_SETS.split():
        for percent in sorted(map(float, settings.PERCENTS.split()), key=lambda p: (p not in (20, 100), -p)):
            for target in settings.TARGETS.split():
                for method in settings.METHODS.split():
                    if method == "scratch_prime" and percent == 0:
                        continue  # nothing is left to train on
                    for rule in settings.RULES.split() if method in NETWORKS else ["training set"]:
                        for start in range(0, len(settings.SPLITS), CHUNK):
                            piece = dict(zip(KEYS, (alloys, target, percent, method, rule)))
                            pieces.append(piece | {"splits": settings.SPLITS[start : start + CHUNK]})
    return pieces


def part_path(settings, piece):
    """File of a piece: its name says all that its content follows from, but for the data."""
    words = [f"{piece[key]:g}" if key == "percent" else piece[key].replace(" ", "-") for key in KEYS]
    seeds = f"{len(settings.SEEDS)}x{settings.SEEDS[0]}" if piece["method"] in NETWORKS else ""
    return (
        settings.RESULTS_DIR
        / "parts"
        / ("_".join([*words, seeds, "-".join(map(str, piece["splits"]))]) + ".csv")
    )


def joblib_backend(settings):
    """Context in which joblib runs on this machine's cores, or on a Dask or Ray cluster."""
    if settings.BACKEND == "dask":
        from distributed import Client

        client = Client(settings.SCHEDULER)  # must stay alive as long as the context
        return joblib.parallel_config("dask", client=client)
    if settings.BACKEND == "ray":
        import ray
        from ray.util.joblib import register_ray

        ray.init(address=settings.SCHEDULER)
        register_ray()
    return joblib.parallel_config(settings.BACKEND)


# ---- table and pictures --------------------------------------------------------------------------


def corrected_interval(differences, n_train, n_test):
    """Half width of the 95 % interval of a mean difference over splits whose training sets overlap.

    Nadeau and Bengio, Machine Learning 52, 239 (2003): variance times 1/J + n_test/n_train.
    """
    n = len(differences)
    if n < 2:
        return np.nan
    return student.ppf(0.975, n - 1) * np.sqrt((1 / n + n_test / n_train) * np.var(differences, ddof=1))


def paired(frame, baseline="scratch", measure="RMSE"):
    """Each method against the baseline, split by split: mean difference, its interval, ratio."""
    rows = []
    for (alloys, target, percent), group in frame.groupby(["alloys", "target", "percent"]):
        for rule in group.rule[group.method == baseline].unique():
            base = group[(group.method == baseline) & (group.rule == rule)].set_index("split")
            for method, other in group[group.rule.isin([rule, "training set"])].groupby("method"):
                other = other.set_index("split").reindex(base.index)
                difference = (other[measure] - base[measure]).dropna()
                if method == baseline or difference.empty:
                    continue
                half = corrected_interval(difference, base.n_train.mean(), base.n_test.mean())
                rows.append(
                    dict(zip(KEYS, (alloys, target, percent, method, rule)))
                    | {"splits": len(difference), "difference": difference.mean(), "half_width": half}
                    | {"ratio": other[measure].mean() / base[measure].mean()}
                )
    return pd.DataFrame(rows)


def write_markdown(frame, path):
    """comparison.md: RMSE, mean ± standard deviation over splits, of the ensembles."""
    lines = []
    for alloys, group in frame.groupby("alloys"):
        columns = sorted({*zip(group.target, group.percent)})
        lines += [
            f"Test RMSE, alloys {alloys}, mean ± standard deviation over {group.split.nunique()} splits; "
            "Ef in 10⁻² eV/atom, Ms in 10⁻¹ μB/atom; networks: ensembles over seeds\n",
            "| method | epoch or hyperparameters by | "
            + " | ".join(f"{t}, {p:g} %" for t, p in columns)
            + " |",
            "| --- | --- |" + " --- |" * len(columns),
        ]
        best = group[group.rule != "reference"].groupby(["target", "percent", "method", "rule"]).RMSE.mean()
        for method in LABELS:
            for rule in group.rule[group.method == method].unique():
                cells = []
                for target, percent in columns:
                    rows = group[
                        (group.method == method) & (group.rule == rule)
                        & (group.target == target) & (group.percent == percent)
                    ]  # fmt: skip
                    scale = 100 if target == "Ef" else 10
                    if rows.empty:
                        cells.append("")
                        continue
                    text = f"{scale * rows.RMSE.mean():.2f} ± {scale * rows.RMSE.std():.2f}"
                    least = rule != "reference" and np.isclose(rows.RMSE.mean(), best[target, percent].min())
                    cells.append(f"**{text}**" if least else text)
                shown = {"reference": "test set (as published)"}.get(rule, rule)
                lines.append(f"| {LABELS[method]} | {shown} | " + " | ".join(cells) + " |")
        lines.append("")
    with common.whole_file(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def plot_learning_curves(frame, path):
    """RMSE against the share of high-component training alloys; bands: standard error over splits."""
    from matplotlib.figure import Figure

    frame = frame[frame.rule != "reference"]
    cells = sorted({*zip(frame.alloys, frame.target)})
    figure = Figure(figsize=(4.6 * len(cells), 4.2), layout="constrained")
    for axes, (alloys, target) in zip(np.ravel(figure.subplots(1, len(cells))), cells):
        group = frame[(frame.alloys == alloys) & (frame.target == target)]
        for i, method in enumerate(m for m in LABELS if m in set(group.method)):
            rows = group[group.method == method].groupby("percent").RMSE.agg(["mean", "sem"])
            colour = f"C{i}"
            axes.plot(rows.index, rows["mean"], marker="o", ms=4, c=colour, label=LABELS[method])
            axes.fill_between(
                rows.index,
                rows["mean"] - rows["sem"],
                rows["mean"] + rows["sem"],
                color=colour,
                alpha=0.15,
                lw=0,
            )
        axes.set(
            title=f"{target}, alloys {alloys}", xlabel="four- and five-element training alloys kept (%)",
            ylabel=f"test RMSE ({common.UNITS[target].replace('mub', 'μB')})",
        )  # fmt: skip
    figure.axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    with common.whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150)


def plot_paired(frame, path):
    """Difference from Scratch in RMSE, split by split, with corrected 95 % intervals."""
    from matplotlib.figure import Figure

    found = paired(frame[frame.rule != "reference"])
    found = found[found.percent.isin([20, 100])]
    if found.empty:
        return
    cells = sorted({*zip(found.alloys, found.target, found.percent)})
    figure = Figure(figsize=(3.2 * len(cells) + 1, 3.4), layout="constrained")
    methods = [m for m in LABELS if m in set(found.method)]
    for axes, (alloys, target, percent) in zip(np.ravel(figure.subplots(1, len(cells), sharey=True)), cells):
        group = found[(found.alloys == alloys) & (found.target == target) & (found.percent == percent)]
        place = [-methods.index(method) for method in group.method]
        axes.errorbar(group.difference, place, xerr=group.half_width, fmt="o", ms=4, capsize=3)
        axes.axvline(0, c="k", lw=0.8)
        axes.locator_params(axis="x", nbins=4)
        axes.set_yticks([-i for i in range(len(methods))], [LABELS[m] for m in methods])
        unit = common.UNITS[target].replace("mub", "μB")
        axes.set(title=f"{target}, {alloys}, {percent:g} %", xlabel=f"RMSE − Scratch's ({unit})")
    with common.whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150)


def main():
    settings = common.read_settings(
        globals(),
        METHODS=common.words_of(*LABELS),
        TARGETS=common.words_of(*common.TARGETS),
        ALLOY_SETS=common.words_of("4+5", "Total"),
        PERCENTS=common.words_of("0", "20", "40", "60", "80", "100"),
        RULES=common.words_of("validation", "reference"),
        BACKEND=common.one_of("loky", "threading", "dask", "ray"),
        SCHEDULER=common.optional(str),
    )
    common.output_folder(settings.RESULTS_DIR / "parts")
    settings.TARGET = settings.TARGETS.split()[0]  # load_data wants one; each piece takes its own
    data = common.load_data(settings)
    pieces = pieces_of(settings)
    todo = [piece for piece in pieces if not part_path(settings, piece).exists()]
    os.environ["TQDM_DISABLE"] = "1"  # the workers' bars; this one is the script's
    with (
        joblib_backend(settings),
        tqdm(total=len(pieces), initial=len(pieces) - len(todo), disable=False) as bar,
    ):
        calls = (joblib.delayed(lambda p: (p, work(settings, data, p)))(piece) for piece in todo)
        results = joblib.Parallel(n_jobs=-1, return_as="generator_unordered")(calls)
        for piece, rows in results:
            common.write_csv(rows, part_path(settings, piece))
            bar.update()

    frame = pd.concat([pd.read_csv(part_path(settings, piece)) for piece in pieces], ignore_index=True)
    common.write_csv(frame, settings.RESULTS_DIR / "comparison.csv")
    common.write_csv(paired(frame), settings.RESULTS_DIR / "paired.csv")
    write_markdown(frame, settings.RESULTS_DIR / "comparison.md")
    plot_learning_curves(frame, settings.RESULTS_DIR / "learning_curve.png")
    plot_paired(frame, settings.RESULTS_DIR / "paired.png")
    print((settings.RESULTS_DIR / "comparison.md").read_text("utf-8"))


if __name__ == "__main__":
    common.run(main)
