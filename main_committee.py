"""What an alloy will have, and what it has in fcc, bcc and hcp: processes and networks, this project's own.

    python main_committee.py
    python main_committee.py --target Ms --splits 0-7
    python main_committee.py --splits all --predict FeNiCoCr

1. A Gaussian process learns the property from the descriptors and the shares of fcc, bcc and hcp that the
   training cells have; its noise has a level for alloys of few and one for alloys of many elements, and rows
   far off their leave-one-out prediction get more (Student-t). Order of a cell on its lattice adds to it.
2. Networks in phases as in 1: half are taught samples labelled by that process, half samples labelled by a
   CE for each phase found, in all three phases; then all learn the training rows, weighted by their noise.
3. A process for each share, on descriptors and lattice, gives the probability of each phase.
4. In a phase: (2 process + networks) / 3. On a lattice: the mean over the phases that may become of it, of
   (process + networks) / 2, with a process that learns the property from the lattice directly, at a weight
   set by leave-one-out.
5. 90 % intervals: the deviation of the process or of the mixture, times what held 90 % of the rows left out.

Of what is predicted it reads composition, lattice and the arrangement of species on it, never what DFT made
of the cell; of training rows all. Prints and writes what main.py does, and for each alloy the columns
half_width_90, p_fcc, p_bcc, p_hcp, and mean_given_phase, half_width_90_given_phase for the shares it has;
and <run>_reliability.png, what the intervals hold.
"""

import warnings
from functools import partial
from typing import NamedTuple

import settings  # first: from here on Ctrl-C leaves no traceback

# isort: split
import joblib
import numpy as np
import pandas as pd

import common
import generate
import prediction
import report
import structure_stat
from processes import (
    Process,
    assembled,
    fit_process,
    left_out,
    noise_of,
    of_difference,
    of_process,
    robust_process,
)

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results"  # folder for what this script writes
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, μB/atom
ALLOYS = "4+5"  # 4+5: samples and test alloys of four and five elements; Total: of two to five
PERCENT = 100  # share of the training set's four- and five-element alloys kept, 0 to 100
SEEDS = "0"  # ensembles of networks per split: a number, a range or a list, as 0 or 0-7 or 0,3,5
SPLITS = "0"  # random splits into training and test set, likewise; 0 is the study's; all: no test set
NETWORKS = 6  # per seed; 0: processes alone
SOURCE = True  # teach the networks samples first; False: they learn the training rows alone
SOURCE_EPOCHS = 10  # of the networks on the samples
SOURCE_LEARNING_RATE = 0.001  # of Adam, there
EPOCHS = 40  # of the networks on the training rows
LEARNING_RATE = 0.0003  # of Adam, there; without SOURCE as high as SOURCE_LEARNING_RATE
BATCH_SIZE = 32  # alloys
PREDICT = None  # alloys: formulas, POSCARs, folders of them, or a CSV file; None: only train and report
CHECKPOINT = None  # with PREDICT: the .pt of an earlier run, in place of training
# --------------------------------------------------------------------------------------------------

METHOD = "committee"  # in the names of the results
FOUND = common.INPUT_PHASES["found"]
QUESTIONS = {"": "on a lattice", "_given_phase": "in the phase it has"}  # ending of its columns -> in words
SAMPLES = 1008  # alloys that the networks are taught, where a system makes too many
LEAST_SHARE = 0.01  # no phase that a training cell was in is impossible
LEAST_ROWS = 10  # of a phase for a CE of its own; of rows of many elements for weights and intervals
NORMAL_90 = 1.645  # half width of the normal distribution's 90 % interval: no stated one is less


# ==== inputs ======================================================================================


def groups_of(fractions):
    """0: alloys of few elements, which scatter more; 1: of four and more."""
    return ((fractions > 0).sum(1) >= 4).astype(int)


def in_phase(descriptors, k):
    """Descriptors and shares of an alloy that is all in one phase."""
    return np.hstack([descriptors, np.tile(np.eye(len(FOUND))[k], (len(descriptors), 1))])


# ==== the recipe ==================================================================================


class Model(NamedTuple):
    """What was learned from the training rows of one split."""

    given: Process  # of the property, on descriptors and shares
    direct: Process  # of the property, on descriptors and lattice
    shares: list  # of Process, one for each phase found
    networks: common.Trained  # on descriptors and shares, all seeds; or None
    n_seeds: int
    weight: float  # of the mixture, beside the direct process
    factors: tuple  # half width of the 90 % interval over deviation: on a lattice, in a phase


def mixture(chances, means, variances):
    """Mean and variance of a mixture: (n, n_phases) each -> (n,) each."""
    mean = (chances * means).sum(1)
    return mean, (chances * (variances + (means - mean[:, None]) ** 2)).sum(1)


def normalised(shares, seen):
    """Shares as chances; of a phase that no training cell was in, which nothing is known of, 0."""
    chances = np.clip(np.column_stack(shares), LEAST_SHARE, 1)
    chances = chances * seen if np.any(seen) else chances
    return chances / chances.sum(1, keepdims=True)


def factor(errors, deviations):
    """What deviations are to be multiplied with to hold 90 % of the errors, with a place for the next one."""
    level = min(1, 0.9 * (1 + 1 / len(errors)))
    return float(max(np.quantile(np.abs(errors) / deviations, level), NORMAL_90))


def fit_split(data, rows, seeds, alloys, n_networks, source, source_loop, loop, batch_size):
    """Model of the training rows; source_loop, loop: (epochs, rate)."""
    n_elements, targets, shares = len(data.system.elements), data.targets[rows], data.shares[rows]
    descriptors, lattice = np.split(data.inputs[rows], [-len(data.phases)], axis=1)
    fractions = descriptors[:, :n_elements]
    clusters = None if data.clusters is None else data.clusters.iloc[rows]
    order, groups = structure_stat.order_of(data.system, fractions, clusters), groups_of(fractions)
    given = robust_process(np.hstack([descriptors, shares]), targets, groups, order)
    direct = robust_process(np.hstack([descriptors, lattice]), targets, groups, order)
    no_order = np.zeros((len(rows), 0))
    of_shares = [
        fit_process(np.hstack([descriptors, lattice]), share, 0 * groups, no_order, prior=True)
        for share in shares.T
    ]
    networks = None
    if n_networks:
        networks = fit_networks(
            data, rows, given, seeds, alloys, n_networks, source, source_loop, loop, batch_size
        )
    # Weight and factors by rows left out, those of many elements where there are some.
    chances = normalised([left_out(one)[0] for one in of_shares], shares.max(0) > 0.5)
    of_phases = [left_out(given, in_phase(descriptors, k)) for k in range(len(FOUND))]
    mixed, variance = mixture(chances, *(np.column_stack(part) for part in zip(*of_phases)))
    alone, some = left_out(direct)[0], groups == 1 if groups.sum() >= LEAST_ROWS else groups >= 0
    gap = mixed - alone
    weight = float(np.clip((gap * (targets - alone)).sum() / max((gap**2).sum(), 1e-300), 0, 1))
    on_lattice = targets - weight * mixed - (1 - weight) * alone, np.sqrt(variance)
    mean, variance = left_out(given)
    factors = [factor(error[some], one[some]) for error, one in (on_lattice, (targets - mean, variance**0.5))]
    return Model(given, direct, of_shares, networks, len(seeds), weight, tuple(factors))


def fit_networks(data, rows, given, seeds, alloys, n_networks, source, source_loop, loop, batch_size):
    """Networks on descriptors and shares, n_networks for each seed: common.Trained."""
    inputs = np.hstack([data.inputs[rows, : -len(data.phases)], data.shares[rows]])
    weights = 1 / (noise_of(given.theta, inputs.shape[1], given.groups) * given.doubt).numpy()
    scalers, weights = common.Scalers.fit(inputs, data.targets[rows]), weights / weights.mean()
    own, numbers = scalers.transform(inputs, data.targets[rows]), range(n_networks)
    network, generators = common.side_by_side(
        [seed * n_networks + k for seed in seeds for k in numbers],
        lambda: common.Network(len(data.system.elements), inputs.shape[1]),
    )
    teacher = np.tile(np.arange(n_networks) % 2, len(seeds))
    loops = [([(*own, weights)], 0 * teacher, loop if source else (loop[0], source_loop[1]))]
    if source:
        taught = [scalers.transform(*one) for one in taught_by(data, rows, given, alloys, weights)]
        loops.insert(0, (taught, teacher, source_loop))
    for sets, set_of, (epochs, rate) in loops:
        common.train(network, generators, sets, set_of, partial(common.Adam, rate=rate), epochs, batch_size)
    return common.Trained(network, [scalers], np.full(len(teacher), loop[0]), [])


def sample_compositions(system, alloys):
    """Mole fractions of the published samples; of a system that makes too many, as many, drawn."""
    n_elements = len(system.elements)
    if generate.most_compositions(n_elements, alloys) <= generate.MOST_SAMPLES:
        return generate.sample_compositions(system, alloys)[0]
    generator, drawn = np.random.default_rng(0), []
    while len(drawn) < SAMPLES:
        k = generator.integers(4, generate.MAX_ELEMENTS + 1)
        chosen = generator.choice(n_elements, k, replace=False)
        if common.allowed(system, [system.elements[i] for i in chosen]):
            drawn.append(np.zeros(n_elements))
            drawn[-1][chosen] = 1 + generator.multinomial(generate.STEPS - k, np.ones(k) / k)
    return np.array(drawn) / generate.STEPS


def taught_by(data, rows, given, alloys, weights):
    """Samples at random in all phases, labelled by the process and by a CE for each phase found: two sets.

    Where there are no clusters, or too few cells of a phase, the process labels in the CE's place.
    """
    from sklearn.linear_model import Ridge

    fractions = sample_compositions(data.system, alloys)
    descriptors, columns = common.descriptors(fractions, data.system.elements), generate.CLUSTERS
    no_order = structure_stat.order_of(data.system, fractions, None)
    random = structure_stat.at_random(data.system, fractions, columns)
    inputs, by_process, by_ce = [], [], []
    for k in range(len(FOUND)):
        inputs.append(in_phase(descriptors, k))
        by_process.append(of_process(given, inputs[k], no_order)[0])
        by_ce.append(by_process[k])
        own = data.shares[rows, k] > 0.5
        if data.clusters is not None and own.sum() >= LEAST_ROWS:
            counted = data.clusters[generate.ce_columns(data.system, columns)].to_numpy()[rows][own]
            model = Ridge(common.TARGETS[data.target].alpha)
            by_ce[k] = model.fit(counted, data.targets[rows][own], sample_weight=weights[own]).predict(random)
    inputs = np.concatenate(inputs)
    return (inputs, np.concatenate(by_process)), (inputs, np.concatenate(by_ce))


def predict_given(model, descriptors, shares, order):
    """The property in phases given as shares: means of each seed (n_seeds, n), half widths (n,)."""
    inputs = np.hstack([descriptors, shares])
    mean, variance = of_process(model.given, inputs, order, groups_of(descriptors[:, :-4]))
    half_width = model.factors[1] * np.sqrt(variance)
    if model.networks is None:
        return np.tile(mean, (model.n_seeds, 1)), half_width
    networks = common.predict(model.networks, inputs)[0].reshape(model.n_seeds, -1, len(inputs)).mean(1)
    return (2 * mean + networks) / 3, half_width


def predict(model, descriptors, lattice, order):
    """The property on a lattice: means of each seed (n_seeds, n), half widths (n,), chances (n, n_phases).

    lattice: one-hot, (n, n_lattices).
    """
    named, groups = np.hstack([descriptors, lattice]), groups_of(descriptors[:, :-4])
    none, seen = np.zeros((len(named), 0)), [was_seen(model, k) for k in range(len(FOUND))]
    chances = normalised([of_process(one, named, none)[0] for one in model.shares], seen)
    phases = [in_phase(descriptors, k) for k in range(len(FOUND))]
    found = [of_process(model.given, inputs, order, groups) for inputs in phases]
    means, variances = (np.column_stack(part) for part in zip(*found))
    of_seeds = [means] * model.n_seeds
    if model.networks is not None:
        networks = np.stack([common.predict(model.networks, inputs)[0] for inputs in phases], axis=-1)
        of_seeds = (means + networks.reshape(model.n_seeds, -1, *means.shape).mean(1)) / 2
    alone = of_process(model.direct, named, order)[0]
    mixed = [mixture(chances, of_seed, variances) for of_seed in of_seeds]
    means = [model.weight * mean + (1 - model.weight) * alone for mean, _ in mixed]
    deviation = np.sqrt(np.mean([variance for _, variance in mixed], axis=0))
    return np.array(means), model.factors[0] * deviation, chances


def was_seen(model, k):
    """Whether a training cell was mostly in a phase."""
    share = model.given.inputs[:, k - len(FOUND)] * model.given.scales[1][k - len(FOUND)]
    return bool((share + model.given.scales[0][k - len(FOUND)] > 0.5).any())


def given_phase(model, descriptors, k, order):
    """As `predict_given`, all in one phase; nan where no training cell was in it."""
    shares = np.tile(np.eye(len(FOUND))[k], (len(descriptors), 1))
    mean, half_width = predict_given(model, descriptors, shares, order)
    return (mean, half_width) if was_seen(model, k) else (mean * np.nan, half_width * np.nan)


def of_gap(model, descriptors, k, order):
    """Half width of the 90 % interval of the property in a phase less that in fcc, (n,)."""
    both = in_phase(descriptors, k), in_phase(descriptors, 0)
    variance = of_difference(model.given, *both, order, groups_of(descriptors[:, :-4]))
    known = was_seen(model, k) and was_seen(model, 0)
    return model.factors[1] * np.sqrt(variance.clip(min=0)) * (1 if known else np.nan)


def fit(
    data, splits, seeds, alloys=ALLOYS, n_networks=NETWORKS, source=SOURCE,
    source_loop=(SOURCE_EPOCHS, SOURCE_LEARNING_RATE), loop=(EPOCHS, LEARNING_RATE), batch_size=BATCH_SIZE,
):  # fmt: skip
    """The recipe for all splits and seeds, on all cores: a report.Outcome. No test label is read.

    data: of cells on the lattice, phases named.
    """
    call = joblib.delayed(fit_split)
    calls = (
        call(data, one.train, seeds, alloys, n_networks, source, source_loop, loop, batch_size)
        for one in splits
    )
    runs = joblib.Parallel(n_jobs=min(len(splits), joblib.cpu_count()), return_as="generator")(calls)
    models = list(common.tqdm(runs, total=len(splits), desc="committee", unit="split", leave=False))
    descriptors, lattice = np.split(data.inputs, [-len(data.phases)], axis=1)
    clusters = None
    if data.clusters is not None:
        columns = generate.ce_columns(data.system, structure_stat.ORDER)
        clusters = pd.DataFrame(common.known_before(data, columns), columns=columns)
    order = structure_stat.order_of(data.system, descriptors[:, : len(data.system.elements)], clusters)
    found = [predict(one, descriptors, lattice, order) for one in models]
    given = [predict_given(one, descriptors, data.shares, order) for one in models]
    columns = {"half_width_90": [half_width for _, half_width, _ in found]}
    columns |= {f"p_{phase}": [chances[:, k] for *_, chances in found] for k, phase in enumerate(FOUND)}
    columns["mean_given_phase"] = [means.mean(0) for means, _ in given]
    columns["half_width_90_given_phase"] = [half_width for _, half_width in given]
    return report.Outcome(
        predicted=np.array([means for means, *_ in found]),
        scales=np.array([one.given.scales[3].item() for one in models]),
        epochs=np.full(len(splits) * len(seeds), loop[0]),
        losses=[],
        columns={name: np.array(values) for name, values in columns.items()},
        state={"models": [state_of(one) for one in models]},
        module="main_committee",
    )


def state_of(model):
    """A Model as tensors, numbers and lists, as a checkpoint holds it."""
    processes = [list(one[:-1]) for one in (model.given, model.direct, *model.shares)]
    networks = None if model.networks is None else common.state_of(model.networks)
    return {"processes": processes, "networks": networks, "rest": list(model[4:6]), "factors": model.factors}


def restored(state):
    """A Model from `state_of`."""
    given, direct, *shares = (assembled(*one) for one in state["processes"])
    networks = state["networks"] and common.restored(state["networks"])
    return Model(given, direct, shares, networks, *state["rest"], state["factors"])


def predictor(state, system, phases):
    """As common.predictor; also of each alloy what `fit` says, and means and intervals in each phase."""
    models = [restored(one) for one in state["models"]]

    def predict_alloys(fractions, names, clusters=None):
        descriptors = common.descriptors(fractions, system.elements)
        order, lattice = structure_stat.order_of(system, fractions, clusters), common.one_hot(names, phases)
        means, half_widths, chances = zip(*(predict(one, descriptors, lattice, order) for one in models))
        columns = {"half_width_90": np.mean(half_widths, axis=0)}
        columns |= {f"p_{phase}": np.mean(chances, axis=0)[:, k] for k, phase in enumerate(FOUND)}
        given = [[given_phase(one, descriptors, k, order) for k in range(len(FOUND))] for one in models]
        for k, phase in enumerate(FOUND):
            columns[f"mean_{phase}"] = np.mean([of_model[k][0].mean(0) for of_model in given], axis=0)
            columns[f"half_width_90_{phase}"] = np.mean([of_model[k][1] for of_model in given], axis=0)
        for k, phase in enumerate(FOUND[1:], 1):
            columns[f"{phase} - fcc"] = columns[f"mean_{phase}"] - columns["mean_fcc"]
            widths = [of_gap(one, descriptors, k, order) for one in models]
            columns[f"half_width_90 {phase} - fcc"] = np.mean(widths, axis=0)
        return np.concatenate(means), columns

    return predict_alloys


def of_test(data, splits, outcome):
    """A row for each test alloy of each split: error over half width of both questions, phase and chances."""
    frames = []
    for i, split in enumerate(splits):
        columns = {name: values[i, split.test] for name, values in outcome.columns.items()}
        columns["mean"] = outcome.predicted[i].mean(0)[split.test]
        named = [FOUND.index(phase) for phase in data.table.phase.to_numpy()[split.test]]
        frame = pd.DataFrame(columns).assign(became=data.shares[split.test].argmax(1), named=named)
        for ending in QUESTIONS:
            error = np.abs(frame[f"mean{ending}"] - data.targets[split.test])
            frame[f"error{ending}"] = error / frame[f"half_width_90{ending}"]
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def print_coverage(tested):
    """How many of the test alloys the stated intervals hold, and how well the phase was told."""
    for ending, question in QUESTIONS.items():
        held = (tested[f"error{ending}"] <= 1).mean()
        print(f"{question}, the stated 90 % interval holds {held:.0%} of the test alloys")
    chances, became = tested[[f"p_{phase}" for phase in FOUND]].to_numpy(), tested.became.to_numpy()
    loss = -np.log(chances[np.arange(len(became)), became].clip(LEAST_SHARE / 10)).mean()
    told, named = (chances.argmax(1) == became).mean(), (tested.named == became).mean()
    print(f"phase: {told:.0%} told, the name alone tells {named:.0%}; log loss {loss:.3f}")


def plot_reliability(tested, what, path):
    """Share of test alloys held by intervals of each level, those of 90 % stretched as a normal's are."""
    from matplotlib.figure import Figure
    from scipy.stats import norm

    levels = np.linspace(0.02, 0.98, 49)
    axes = (figure := Figure(figsize=(4.6, 4.6), layout="constrained")).subplots()
    for ending, question in QUESTIONS.items():
        held = [(tested[f"error{ending}"] <= norm.ppf((1 + p) / 2) / NORMAL_90).mean() for p in levels]
        axes.plot(levels, held, label=f"{question}: {(tested[f'error{ending}'] <= 1).mean():.0%} in 90 %")
    axes.axline((0, 0), slope=1, c="k", lw=0.8)
    axes.set(xlabel="stated", ylabel="share of test alloys held", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(f"Committee's intervals, {what}", fontsize=7)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150, format="png")


def main():
    chosen = settings.read(
        globals(),
        TARGET=settings.one_of(*common.TARGETS),
        NETWORKS=settings.number(int, 0),
        SOURCE=settings.true_or_false,
    )
    chosen.METHOD, chosen.PHASE_INPUT = METHOD, "named"
    if prediction.predicts_only(chosen):
        return
    data, splits = report.load(chosen, cells="lattice")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of joblib, on the workers it stops
        outcome = fit(
            data, splits, chosen.SEEDS, chosen.ALLOYS, chosen.NETWORKS, chosen.SOURCE,
            (chosen.SOURCE_EPOCHS, chosen.SOURCE_LEARNING_RATE), (chosen.EPOCHS, chosen.LEARNING_RATE),
            chosen.BATCH_SIZE,
        )  # fmt: skip
    if any(len(split.test) for split in splits):
        tested = of_test(data, splits, outcome)
        print_coverage(tested)
        what = f"{common.TARGETS[data.target].label}, {len(tested)} test alloys\ndata: {data.source}"
        picture = partial(plot_reliability, tested, what)
        outcome = outcome._replace(pictures=(("reliability", picture),))
    report.report(chosen, data, splits, outcome, how="as set, none chosen on a label")


if __name__ == "__main__":
    settings.run(main)
