"""Scratch, Scratch', DA and TL beside what a researcher would pick instead, on the same splits.

    python studies/compare_methods.py --data-dir HEA_data
    python studies/compare_methods.py --splits 0-19 --percents 20 100 --methods scratch tl ce gp
    python studies/compare_methods.py --scheduler tcp://host:8786   # on Dask's workers

Reads the occupation tables of structure_stat.py. Peers of the networks learn from the same rows. Of the
networks' inputs: a Gaussian process with an anisotropic Matérn kernel, told the shares of fcc, bcc and hcp
(gp) or of bcc, hcp and fcc + hcp (gp_close_packed), and support vectors (svr). Of the arrangement of species
on the lattice: the cluster expansion alone (ce; ce_fixed with the published penalty) and a Bayesian ridge
with automatic relevance (ard). And beyond/phase_gp.py. Each chooses its hyperparameters inside the training
set. Networks count as the ensemble mean over SEEDS.

PHASE_INPUTS named: alloy and lattice in the name -> the label in the table, the published question. found:
alloy and the shares of fcc, bcc and hcp that its cell has -> the label, a property in a phase that one asks
for. RULES validation: nothing is read of a test cell that is not known before its calculation. reference:
the paper's, epochs chosen on the test set, and for ce the test cells as DFT relaxed them, a leak to look at.

Writes to RESULTS_DIR: parts/ (a file per piece of work, named by a hash of all that it follows from: data,
tables, settings, code; what is there is not done again, so an interrupted run goes on where it was),
comparison.csv (a row per method, rule and split), comparison.md, paired.csv, paired.png and, where there are
several PERCENTS, learning_curve.png.
"""

import hashlib
import inspect
import json
import sys
import time
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
from scipy.stats import t as student
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import ARDRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import generate
import lattice
import main as main_scratch
import main_transfer
import report
import settings
import structure_stat
from settings import InputError

# ---- settings ------------------------------------------------------------------------------------
RESULTS_DIR = "results/compare"  # folder for what this script writes
METHODS = "scratch scratch_prime da tl tl_tuned phase_gp ce ce_fixed gp gp_close_packed svr"  # compared
PHASE_INPUTS = "named"  # what is known of the phase
TARGETS = "Ef Ms"  # Ef: formation energy; Ms: magnetisation
ALLOY_SETS = "4+5 Total"  # test alloys of four and five elements, or of two to five
PERCENTS = "0 20 40 60 80 100"  # shares of the training set's four- and five-element alloys
SPLITS = "0-19"  # random splits into training and test set
SEEDS = "0-3"  # networks per split
RULES = "validation reference"  # how networks choose their epoch
BASELINE = "gp"  # the method whose error is taken from the others' in paired.csv and paired.png
SCHEDULER = None  # address of a Dask scheduler, whose workers import this project; None: this machine's cores
# --------------------------------------------------------------------------------------------------

CHUNK = 5  # splits per piece of work: the networks of all train side by side
LENGTHS_FROM = 600  # rows that a Gaussian process fits its lengths to: time grows as their number cubed
LABELS = report.METHODS | {
    "tl_tuned": "TL, the CE's penalty tuned", "phase_gp": "Gaussian process, phase-aware",
    "ce": "CE alone", "ce_fixed": "CE alone, published penalty", "ard": "Bayesian ridge on clusters",
    "gp": "Gaussian process", "gp_close_packed": "Gaussian process, fcc near hcp", "svr": "support vectors",
}  # fmt: skip
NETWORKS = ("scratch", "scratch_prime", "da", "tl", "tl_tuned")
ON_CLUSTERS = ("ce", "ce_fixed")  # peers that are told of no phase but the lattice they are on
NEED_CLUSTERS = ("da", "tl", "tl_tuned", "ard", *ON_CLUSTERS)
KEYS = ["alloys", "target", "percent", "phase_input", "method", "rule"]
TESTED = {"4+5": "of four and five elements", "Total": "of two to five elements"}
MODULES = (common, structure_stat, lattice, generate, main_scratch, main_transfer)  # that figures come from
HONEST = "training set"  # the rule of what is no network: hyperparameters are chosen there


# ---- the peers: (data, split, rule) -> predictions for all alloys, (n,), in the target's unit ------------


def regress(model, inputs, data, split):
    """Predictions of a regressor of scikit-learn; inputs and target are standardised."""
    model = TransformedTargetRegressor(make_pipeline(StandardScaler(), model), transformer=StandardScaler())
    return model.fit(inputs[split.train], data.targets[split.train]).predict(inputs)


class MaternProcess(RegressorMixin, BaseEstimator):
    """Gaussian process of a Matérn kernel with a length per input, and noise.

    Smoothness 3/2 or 5/2 by likelihood. Where there are more than LENGTHS_FROM rows, some of them settle the
    kernel, and all predict.
    """

    def fit(self, inputs, targets):
        some = np.sort(np.random.default_rng(0).permutation(len(targets))[:LENGTHS_FROM])
        models, lengths = [], np.full(inputs.shape[1], 3.0)
        for nu in (1.5, 2.5):
            kernel = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(lengths, (1e-1, 1e3), nu)
            model = GaussianProcessRegressor(kernel + WhiteKernel(0.1, (1e-4, 1)))
            with warnings.catch_warnings():  # of a length at its bound: an input of no use
                warnings.simplefilter("ignore", ConvergenceWarning)
                models.append(model.fit(inputs[some], targets[some]))
        self.process_ = max(models, key=lambda model: model.log_marginal_likelihood_value_)
        if len(some) < len(targets):
            kernel = self.process_.kernel_
            self.process_ = GaussianProcessRegressor(kernel, optimizer=None).fit(inputs, targets)
        return self

    def predict(self, inputs):
        return self.process_.predict(inputs)


def gp(data, split, rule):
    return regress(MaternProcess(), data.inputs, data, split)


def gp_close_packed(data, split, rule):
    """As gp, told the shares of bcc, hcp and fcc + hcp: the two close-packed phases are near each other."""
    descriptors, shares = np.split(data.inputs, [-len(data.phases)], axis=1)
    fcc, bcc, hcp = np.pad(shares, ((0, 0), (0, 3 - shares.shape[1]))).T
    return regress(MaternProcess(), np.column_stack([descriptors, bcc, hcp, fcc + hcp]), data, split)


def svr(data, split, rule):
    grid = {"C": [1, 3, 10, 30, 100], "gamma": [0.01, 0.03, 0.1], "epsilon": [0.02, 0.1, 0.2]}
    folds = KFold(5, shuffle=True, random_state=split.number)
    search = GridSearchCV(SVR(), grid, cv=folds, scoring="neg_mean_squared_error")
    return regress(search, data.inputs, data, split)


def ard(data, split, rule):
    columns = common.cluster_columns(data.system, *main_transfer.CLUSTERS)
    clusters = common.known_before(data, columns, rule)
    return regress(ARDRegression(), np.hstack([clusters, data.inputs[:, -len(data.phases) :]]), data, split)


def ce(data, split, rule, alpha="tuned"):
    """The cluster expansion of `generate.fit_ce`, asked for an alloy's arrangement on the lattice."""
    clusters, predicted = main_transfer.CLUSTERS, np.empty(len(data.table))
    inputs = common.known_before(data, common.cluster_columns(data.system, *clusters), rule)
    for phase, model in generate.fit_ce(data, split.train, clusters, alpha).items():
        of_phase = (data.table.phase == phase).to_numpy()
        predicted[of_phase] = model.predict(inputs[of_phase])
    return predicted


PEERS = {
    "ce": ce, "ce_fixed": partial(ce, alpha=None), "ard": ard,
    "gp": gp, "gp_close_packed": gp_close_packed, "svr": svr,
}  # fmt: skip


# ---- one piece of work ---------------------------------------------------------------------------


def predict_networks(piece, data, splits, cfg):
    """Predictions of main.py's and main_transfer.py's methods, constants theirs: (n_splits, n_seeds, n)."""
    method = piece["method"]
    script = main_scratch if method.startswith("scratch") else main_transfer
    own = settings.read(vars(script), words=[], **getattr(script, "KINDS", {}))
    vars(own).update({name: vars(cfg)[name] for name in settings.SHARED}, DEVICE="cpu", SEEDS=cfg.SEEDS)
    vars(own).update(TARGET=piece["target"], ALLOYS=piece["alloys"], SELECT_BY=piece["rule"])
    if method == "tl_tuned":
        own.ALPHA = "tuned"
    fit = main_scratch.scratch
    if script is main_transfer:
        fit = main_transfer.augment if method == "da" else main_transfer.transfer
        fit = partial(fit, samples=generate.make_samples(own, data))
    return common.predict(common.fit_selected(fit, data, splits, own), data.inputs)


def answers(piece, data, splits, cfg):
    """A method fitted on each split: {phase input: (predictions, half widths of their 90 % intervals)}.

    Predictions (n_splits, n_members, n) are for all alloys; half widths (n_splits, n) are those of phase_gp,
    which answers with both phase inputs; of others each is None.
    """
    method, none = piece["method"], [None] * len(splits)
    if method in NETWORKS:
        return {piece["phase_input"]: (predict_networks(piece, data, splits, cfg), none)}
    if method in PEERS:
        predicted = [PEERS[method](data, split, piece["rule"]) for split in splits]
        return {piece["phase_input"]: (np.array(predicted)[:, None], none)}
    from beyond import phase_gp

    outcome = phase_gp.fit_splits(data, splits, jobs=1)
    given = outcome.columns["mean_given_phase"][:, None], outcome.columns["half_width_90_given_phase"]
    return {"named": (outcome.predicted, outcome.columns["half_width_90"]), "found": given}


def figures(data, rows, predicted, half_width):
    """Errors of the mean over members for some alloys; and how many of these its 90 % intervals hold.

    rows: numbers of the alloys. predicted: (n_members, n). half_width: (n,), or None.
    """
    true, mean = data.targets[rows], predicted.mean(0)[rows]
    found = {name: report.scores(true, mean)[name] for name in ("R2", "RMSE", "MAE")}
    found["single_RMSE"] = np.mean([report.scores(true, one[rows])["RMSE"] for one in predicted])
    if half_width is not None:
        found["within_90"] = (np.abs(true - mean) <= half_width[rows]).mean()
    return found


def work(piece, data, cfg):
    """Fit a method on a chunk of splits: rows of comparison.csv; phase_gp's are of both phase inputs."""
    started, rows, high_only = time.time(), [], piece["method"] == "scratch_prime"
    kept = data.table, piece["alloys"], piece["percent"]
    splits = [common.split_rows(*kept, number, high_only) for number in piece["splits"]]
    # What the splits share follows from the pool that they draw test alloys from: for '4+5' those of four
    # and five elements. The alloys of few elements, in every training set, do not count.
    pool = (data.table.n_components >= (4 if piece["alloys"] == "4+5" else 0)).sum()
    for phase_input, (predicted, half_widths) in answers(piece, data, splits, cfg).items():
        for i, (number, _, test) in enumerate(splits):
            row = {name: piece[name] for name in KEYS} | {"phase_input": phase_input, "split": number}
            row |= {"n_pool": pool - len(test), "n_test": len(test)}
            rows.append(row | figures(data, test, predicted[i], half_widths[i]))
    return pd.DataFrame(rows).assign(seconds=(time.time() - started) / len(splits))


def able(methods, clusters):
    """Those of the methods that data with or without clusters can train; a printed line says which."""
    left = [method for method in methods if clusters or method not in NEED_CLUSTERS]
    if not left:
        raise InputError("no POSCARS/: expected a method that needs no clusters among METHODS")
    if len(left) < len(methods):
        print(f"without clusters left out: {', '.join(LABELS[one] for one in methods if one not in left)}")
    return left


def pieces_of(cfg):
    """All pieces of work, the most asked-for first: dicts with KEYS and splits."""
    pieces, rules = [], [rule.replace("validation", HONEST) for rule in cfg.RULES]
    rules_of = dict.fromkeys(NETWORKS, cfg.RULES) | dict.fromkeys(ON_CLUSTERS, rules)
    percents = sorted(map(float, cfg.PERCENTS), key=lambda p: (p not in (20, 100), -p))
    asked = product(cfg.ALLOY_SETS, percents, cfg.TARGETS, cfg.PHASE_INPUTS, cfg.METHODS)
    for alloys, percent, target, phase_input, method in asked:
        # The cluster expansion is told of no phase, and phase_gp answers both questions at once.
        once = phase_input == "found" and method in (*ON_CLUSTERS, "phase_gp")
        if once or (method == "scratch_prime" and percent == 0):  # the latter has nothing to train on
            continue
        for rule in rules_of.get(method, [HONEST]):
            piece = dict(zip(KEYS, (alloys, target, percent, phase_input, method, rule)))
            for start in range(0, len(cfg.SPLITS), CHUNK):
                pieces.append(piece | {"splits": cfg.SPLITS[start : start + CHUNK]})
    return pieces


def code_hash(method):
    """Of the code that a method's figures come from: a changed line may change them."""
    paths = [Path(one.__file__) for one in MODULES]
    paths += [Path(__file__).parent.parent / "beyond" / "phase_gp.py"] * (method == "phase_gp")
    code = [path.read_text("utf-8").split("\ndef main():")[0] for path in paths]
    code.append(Path(__file__).read_text("utf-8").split("# ---- table and pictures")[0])
    return hashlib.sha256("".join([*code, inspect.getsource(report.scores)]).encode()).hexdigest()


def part_path(folder, piece, data, seeds, code):
    """File of a piece: named by all that its content follows from."""
    system = [data.system.elements, sorted(map(sorted, data.system.excluded))]
    follows_from = json.dumps([piece, seeds, data.sha256, system, code], sort_keys=True)
    words = [piece["method"], piece["target"], piece["alloys"], f"{piece['percent']:g}"]
    words += [piece["rule"].replace(" ", "-"), hashlib.sha256(follows_from.encode()).hexdigest()[:16]]
    return folder / "parts" / ("_".join(words) + ".csv")


def finished(calls, paths, cfg):
    """Rows of all pieces of work, on this machine's cores or on Dask's. calls: (function, *arguments)."""

    def make(path, function, *arguments):
        common.tqdm = partial(tqdm, disable=True)  # wherever it runs; the one bar is the script's
        return path, function(*arguments)

    todo = [(path, *call) for call, path in zip(calls, paths) if not path.exists()]
    backend = {"backend": "dask", "scheduler_host": cfg.SCHEDULER} if cfg.SCHEDULER else {"backend": "loky"}
    try:
        config = joblib.parallel_config(n_jobs=cfg.JOBS or -1, **backend)
    except (ImportError, ValueError) as error:  # it is not installed; no address
        raise InputError(f"SCHEDULER {cfg.SCHEDULER}: {error}") from None
    with config, tqdm(total=len(calls), initial=len(calls) - len(todo), unit="piece") as bar:
        jobs = (joblib.delayed(make)(*one) for one in todo)
        for path, rows in joblib.Parallel(return_as="generator_unordered")(jobs):
            report.write_csv(rows, path)
            bar.update()
    return pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)


# ---- table and pictures --------------------------------------------------------------------------


def corrected_interval(differences, n_pool, n_test):
    """Half width of the 95 % interval of a mean difference over splits whose training sets overlap.

    Nadeau and Bengio, Machine Learning 52, 239 (2003): variance times 1/J + n_test/n_train, n_train being
    what is left of the pool that the test alloys are drawn from.
    """
    n = len(differences)
    if n < 2:
        return np.nan
    return student.ppf(0.975, n - 1) * np.sqrt((1 / n + n_test / n_pool) * np.var(differences, ddof=1))


def paired(frame, baseline):
    """Each method and rule against the baseline, split by split: mean difference in RMSE, interval, ratio.

    The baseline's rule is the same or, where it has none such, its honest one. Empty where the baseline is
    not among the methods.
    """
    rows = []
    for keys, group in frame.groupby(KEYS[:4]):
        of_baseline = group[group.method == baseline]
        for (method, rule), other in group[group.method != baseline].groupby(["method", "rule"]):
            base = of_baseline[of_baseline.rule == rule]
            base = base if len(base) else of_baseline[of_baseline.rule != "reference"]
            both = other.merge(base, on="split", suffixes=("", "_base"))
            if both.empty:
                continue
            difference = both.RMSE - both.RMSE_base
            half = corrected_interval(difference, both.n_pool.mean(), both.n_test.mean())
            found = {"splits": len(both), "difference": difference.mean(), "half_width": half}
            found["ratio"] = pooled(both.RMSE) / pooled(both.RMSE_base)
            rows.append(dict(zip(KEYS, (*keys, method, rule))) | found)
    return pd.DataFrame(rows, columns=[*KEYS, "splits", "difference", "half_width", "ratio"])


def pooled(rmse):
    """Root of the mean squared error over splits."""
    return np.sqrt(np.mean(np.square(rmse)))


def markdown(frame):
    """comparison.md: RMSE over all splits ± its standard deviation over splits, of the ensembles."""
    lines = []
    for (alloys, phase_input), group in frame.groupby(["alloys", "phase_input"]):
        columns = sorted({*zip(group.target, group.percent)})
        units = ", ".join(f"{t} in {common.TARGETS[t].unit}" for t in sorted({*group.target}))
        names = ["method", "epoch, hyperparameters by", *(f"{t}, {p:g} %" for t, p in columns)]
        lines += [
            f"Test RMSE, alloys {alloys}, phase {phase_input}: root of the mean squared error over "
            f"{group.split.nunique()} splits ± standard deviation over splits; {units}; networks: ensembles "
            f"over seeds\n\n| {' | '.join(names)} |\n|{' --- |' * len(names)}"
        ]
        rmse = group.groupby(["method", "rule", "target", "percent"]).RMSE.agg([pooled, "std"])
        best = rmse.drop("reference", level="rule", errors="ignore").pooled.groupby(level=[2, 3]).min()
        for method, rule in product(LABELS, ("validation", HONEST, "reference")):
            entries = []
            for key in columns:
                row = rmse.loc[(method, rule, *key)] if (method, rule, *key) in rmse.index else None
                text = "" if row is None else f"{row['pooled']:#.3g} ± {row['std']:#.2g}"
                is_best = text and rule != "reference" and row["pooled"] == best[key]
                entries.append(f"**{text}**" if is_best else text)
            read = "test set (as published)" if method in NETWORKS else "relaxed test cells"
            shown = read if rule == "reference" else rule
            if any(entries):
                lines.append(f"| {LABELS[method]} | {shown} | {' | '.join(entries)} |")
        if "within_90" in group:
            held = group.groupby(["target", "percent"]).within_90.mean()
            entries = " | ".join(f"{held[key]:.0%}" for key in columns)
            lines.append(f"| alloys within its 90 % intervals | | {entries} |")
        lines.append("")
    return "\n".join(lines)


def plot_learning_curves(frame, source, path):
    """RMSE against the share of high-component training alloys; bars: standard error over splits."""
    panels = [*frame.groupby(["alloys", "phase_input", "target"])]
    methods = [method for method in LABELS if method in {*frame.method}]
    size, title = (3.6 * len(panels) + 2.4, 4), "Test RMSE by size of the training set"
    note = f"{source}; mean over {frame.split.nunique()} splits; bars: its standard error"
    with report.picture(path, size, title, note) as figure:
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, ((alloys, phase_input, target), group) in zip(every, panels):
            for i, method in enumerate(methods):
                rows = group[group.method == method].groupby("percent").RMSE.agg(["mean", "sem"])
                style = {"marker": "o", "ms": 4, "capsize": 2, "ls": ("-", "--")[i // 10]}  # ten colours
                axes.errorbar(rows.index, rows["mean"], rows["sem"], label=LABELS[method], **style)
            axes.set_title(panel_title(alloys, target, phase_input), fontsize=9)
            axes.set_xlabel("four- and five-element training alloys kept (%)", fontsize=9)
            axes.set_ylabel(f"test RMSE ({common.TARGETS[target].unit})", fontsize=9)
        every[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def panel_title(alloys, target, phase_input):
    return f"{common.TARGETS[target].label}, phase {phase_input}\nalloys {TESTED[alloys]}"


def plot_paired(found, baseline, source, path):
    """Difference from the baseline in RMSE, split by split, with corrected 95 % intervals.

    found: of `paired`. A row of panels for each phase input.
    """
    names, inputs = ["alloys", "target", "percent"], sorted({*found.phase_input}, reverse=True)
    columns = [*dict.fromkeys(map(tuple, found[names].sort_values(names).to_numpy()))]
    methods = [m for m in LABELS if m in {*found.method}]
    size = 2.8 * len(columns) + 2.6, (0.25 * len(methods) + 1.3) * len(inputs) + 0.6
    note = f"{source}; {found.splits.max()} splits; bars: 95 % intervals, splits' overlap accounted for"
    with report.picture(path, size, "Difference in test RMSE", note) as figure:
        panels = figure.subplots(len(inputs), len(columns), sharey=True, squeeze=False)
        for (i, phase_input), (j, keys) in product(enumerate(inputs), enumerate(columns)):
            axes, unit = panels[i, j], common.TARGETS[keys[1]].unit
            group = found[(found[names] == [*keys]).all(axis=1) & (found.phase_input == phase_input)]
            place = [-methods.index(method) for method in group.method]
            axes.errorbar(group.difference, place, xerr=group.half_width, fmt="o", ms=4, capsize=3)
            axes.axvline(0, c="k", lw=0.8)
            axes.locator_params(axis="x", nbins=4)
            axes.set_yticks([-i for i in range(len(methods))], [LABELS[m] for m in methods], fontsize=9)
            kept = f"{keys[2]:g} % of those of four and five kept"
            axes.set_title(f"{panel_title(*keys[:2], phase_input)}\n{kept}", fontsize=9)
            axes.set_xlabel(f"RMSE minus {LABELS[baseline]}'s\n({unit}; negative: better)", fontsize=9)


KINDS = {
    "METHODS": [*LABELS], "TARGETS": [*common.TARGETS], "ALLOY_SETS": [*TESTED], "BASELINE": tuple(LABELS),
    "PERCENTS": ["0", "20", "40", "60", "80", "100"], "PHASE_INPUTS": ["named", "found"],
    "RULES": ["validation", "reference"], "SPLITS": settings.numbers, "SCHEDULER": (None, str),
}  # fmt: skip


def main():
    cfg = settings.read(globals(), **KINDS)
    cfg.METHODS = able(cfg.METHODS, (cfg.DATA_DIR / "POSCARS").is_dir())
    settings.output_folder(cfg.RESULTS_DIR / "parts")
    loaded, calls, paths = {}, [], []
    for piece in pieces_of(cfg):
        key = piece["target"], piece["phase_input"], main_transfer.cells_for(piece["rule"])
        if key not in loaded:
            own = SimpleNamespace(**vars(cfg) | {"TARGET": key[0], "PHASE_INPUT": key[1]})
            loaded[key] = common.load_data(own, key[2])
        calls.append((work, piece, loaded[key], cfg))
        paths.append(part_path(cfg.RESULTS_DIR, piece, loaded[key], cfg.SEEDS, code_hash(piece["method"])))
    frame, source = finished(calls, paths, cfg), calls[0][2].source
    report.write_csv(frame, cfg.RESULTS_DIR / "comparison.csv")
    report.write_csv(paired(frame, cfg.BASELINE), cfg.RESULTS_DIR / "paired.csv")
    text = markdown(frame)
    (cfg.RESULTS_DIR / "comparison.md").write_text(text, "utf-8")
    honest = frame[frame.rule != "reference"]
    if honest.percent.nunique() > 1:
        plot_learning_curves(honest, source, cfg.RESULTS_DIR / "learning_curve.png")
    differences = paired(honest[honest.percent.isin([20, 100])], cfg.BASELINE)
    if len(differences):
        plot_paired(differences, cfg.BASELINE, source, cfg.RESULTS_DIR / "paired.png")
    print(text)


if __name__ == "__main__":
    settings.run(main)
