"""A committee of models that learn from one another: this project's own method.

    python main_committee.py
    python main_committee.py --target Ms --splits 0-7 --predict FeNiCoCr

1. Two teachers are fitted to the training rows: a Gaussian process on the networks' inputs (Matérn, a
   length for each), and the published cluster expansion (CE).
2. Both label the published samples. The paper's networks learn these, every other network from the same
   teacher, and then the training rows, alloys of few elements weighted by how much noisier they are than
   those of many. Both for a fixed number of epochs: no label is spent on choosing one.
3. The prediction is the mean of process, CE and networks; its 90 % interval is the process's, noise
   included.

What is predicted is read by its composition and phase alone: the CE takes it as an alloy with species at
random, never the clusters of its relaxed cell, which are DFT's output. Prints and writes what main.py
does, and the half width of the 90 % interval of each alloy.
"""

import warnings
from functools import partial
from math import factorial
from typing import NamedTuple

import joblib
import numpy as np
import torch

import common
import generate
import prediction
import report
import settings

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results"  # folder for what this script writes
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, μB/atom
ALLOYS = "4+5"  # 4+5: samples and test alloys of four and five elements; Total: of two to five
PERCENT = 100  # share of the training set's four- and five-element alloys kept, 0 to 100
SEEDS = "0"  # ensembles of networks per split: a number, a range or a list, as 0 or 0-7 or 0,3,5
SPLITS = "0"  # random splits into training and test set, likewise; 0 is the study's
NETWORKS = 6  # per seed
CLUSTERS = ["points", "pairs", "triplets"]  # blocks the CE is fitted to; second_pairs may be added
ALPHA = None  # strength of the CE's ridge penalty; None: as published, by target and clusters; or tuned
SOURCE_EPOCHS = 40  # of the networks on the samples
SOURCE_LEARNING_RATE = 0.001  # of Adam, there
EPOCHS = 20  # of the networks on the training rows
LEARNING_RATE = 0.0003  # of Adam, there
BATCH_SIZE = 16  # alloys
PREDICT = None  # alloys: formulas, POSCARs, folders of them, or a CSV file; None: only train and report
CHECKPOINT = None  # with PREDICT: the .pt of an earlier run, in place of training
# --------------------------------------------------------------------------------------------------

METHOD = "committee"  # in the names of the results
NORMAL_90 = 1.645  # half width of the normal distribution's 90 % interval


class Teachers(NamedTuple):
    """Gaussian process and cluster expansion of one split."""

    process: object  # sklearn's, on standardised inputs and targets
    scalers: common.Scalers
    expansion: dict  # phase -> (coefficients (n_columns,), intercept)

    def label(self, inputs, phase, occupation):
        """The labels of alloys of one phase by process and CE, in the target's unit: two of (n,)."""
        mean, _ = self.of_process(inputs)
        coefficients, intercept = self.expansion[phase]
        return mean, occupation @ coefficients + intercept

    def of_process(self, inputs):
        """The process's mean and standard deviation, noise included, in the target's unit: two of (n,)."""
        mean, deviation = self.process.predict(self.scalers.inputs.transform(inputs), return_std=True)
        return self.scalers.target.inverse_transform(mean[:, None])[
            :, 0
        ], deviation * self.scalers.target.scale_

    def predict(self, system, fractions, phases, clusters):
        """Mean of process and CE for alloys with species at random, the process's deviation: (n,) each."""
        phases = np.asarray(phases)
        inputs = common.network_inputs(fractions, common.one_hot(phases, common.PHASES), system.elements)
        labels = np.full((2, len(phases)), np.nan)  # of a phase that no CE was fitted to
        for phase in self.expansion.keys() & set(phases):
            rows = phases == phase
            labels[:, rows] = self.label(inputs[rows], phase, at_random(system, fractions[rows], clusters))
        return labels.mean(0), self.of_process(inputs)[1]


def at_random(system, fractions, clusters):
    """Occupation probabilities of alloys with species at random: (n, n_columns) of generate.ce_columns."""
    columns = []
    for name in generate.ce_columns(system, clusters):
        members = name.split()[-1].split("-")
        number = np.array([members.count(element) for element in system.elements])
        ways = factorial(len(members)) / np.prod([factorial(n) for n in number])
        columns.append(ways * np.prod(fractions**number, axis=1))
    return np.column_stack(columns)


def gaussian_process(inputs, targets, kernel=None):
    """A Gaussian process fitted to standardised rows; kernel: one with its lengths settled already."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    start = ConstantKernel(1.0, (1e-2, 1e3)) * Matern(np.full(inputs.shape[1], 3.0), (1e-1, 1e3), 1.5)
    start += WhiteKernel(0.1, (1e-4, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: an input of no use
        if kernel is None:
            return GaussianProcessRegressor(start).fit(inputs, targets)
        return GaussianProcessRegressor(start.clone_with_theta(kernel), optimizer=None).fit(inputs, targets)


def fit_teachers(data, rows, clusters, alpha):
    """Teachers of the given training rows."""
    scalers = common.Scalers.fit(data.inputs[rows], data.targets[rows])
    process = gaussian_process(*scalers.transform(data.inputs[rows], data.targets[rows]))
    models = generate.fit_ce(data, rows, clusters, alpha)
    return Teachers(process, scalers, {phase: (one.coef_, one.intercept_) for phase, one in models.items()})


def row_weights(data, rows, process):
    """How much each training row counts for the networks, (n,), 1 on average.

    Alloys of few elements (ordered, small cells) scatter more about the process than those of many:
    their weight is the ratio of the two mean squares of its leave-one-out errors (Rasmussen and Williams
    2006, equation 5.12), at most 1.
    """
    inverse = np.linalg.inv(process.L_ @ process.L_.T)
    square = (process.alpha_ / np.diag(inverse)) ** 2
    many = data.table.n_components.to_numpy()[rows] >= 4
    trust = min(square[many].mean() / square[~many].mean(), 1) if 0 < many.sum() < len(many) else 1
    weights = np.where(many, 1, trust)
    return weights / weights.mean()


def fit_split(data, samples, rows, seeds, n_networks, clusters, alpha, source_loop, loop, batch_size):
    """Teachers and networks of one split's training rows; source_loop, loop: (epochs, rate)."""
    teachers = fit_teachers(data, rows, clusters, alpha)
    labels = [
        teachers.label(samples.inputs[phase], phase, samples.occupation[phase]) for phase in samples.inputs
    ]
    inputs = np.concatenate(list(samples.inputs.values()))
    source = [teachers.scalers.transform(inputs, np.concatenate(of_teacher)) for of_teacher in zip(*labels)]
    own = teachers.scalers.transform(data.inputs[rows], data.targets[rows])
    own = (*own, row_weights(data, rows, teachers.process))
    numbers = [seed * n_networks + k for seed in seeds for k in range(n_networks)]
    network, generators = common.draw(data, numbers)
    taught_by = np.tile(np.arange(n_networks) % len(source), len(seeds))
    for sets, set_of, (epochs, rate) in ((source, taught_by, source_loop), ([own], 0 * taught_by, loop)):
        common.train(network, generators, sets, set_of, partial(common.Adam, rate=rate), epochs, batch_size)
    return teachers, common.Trained(network, [teachers.scalers], np.full(len(numbers), loop[0]), [])


def predict(teachers, trained, n_networks, system, fractions, phases, clusters):
    """Predictions (n_seeds, n) and half widths of their 90 % interval (n,), in the target's unit."""
    taught, deviation = teachers.predict(system, fractions, phases, clusters)
    inputs = common.network_inputs(fractions, common.one_hot(phases, common.PHASES), system.elements)
    networks = common.predict(trained, inputs).reshape(-1, n_networks, len(inputs)).mean(1)
    return (2 * taught + networks) / 3, NORMAL_90 * deviation


def fit(
    data, data_dir, splits, seeds, alloys=ALLOYS, n_networks=NETWORKS, clusters=CLUSTERS, alpha=ALPHA,
    source_loop=(SOURCE_EPOCHS, SOURCE_LEARNING_RATE), loop=(EPOCHS, LEARNING_RATE), batch_size=BATCH_SIZE,
):  # fmt: skip
    """The recipe for all splits and seeds, on all cores: a report.Outcome. No test label is read."""
    samples = generate.make_samples(data_dir, data, alloys, clusters)
    call = joblib.delayed(fit_split)
    found = joblib.Parallel(n_jobs=min(len(splits), joblib.cpu_count()))(
        call(data, samples, one.train, seeds, n_networks, clusters, alpha, source_loop, loop, batch_size)
        for one in splits
    )
    alloys_read = common.mole_fractions(data.table.formula, data.system.elements), data.table.phase
    predicted = [predict(*one, n_networks, data.system, *alloys_read, clusters) for one in found]
    state = [
        {
            "networks": common.state_of(trained),
            "lengths": torch.tensor(teachers.process.kernel_.theta),
            "rows": [torch.tensor(part) for part in (data.inputs[split.train], data.targets[split.train])],
            "expansion": {phase: (torch.tensor(c), float(i)) for phase, (c, i) in teachers.expansion.items()},
        }
        for (teachers, trained), split in zip(found, splits)
    ]
    return report.Outcome(
        predicted=np.array([values for values, _ in predicted]),
        scales=np.array([teachers.scalers.target.scale_.item() for teachers, _ in found]),
        epochs=np.full(len(splits) * len(seeds), loop[0]),
        losses=[],
        columns={"half_width_90": np.array([half_width for _, half_width in predicted])},
        state={"splits": state, "n_networks": n_networks, "clusters": clusters},
        module="main_committee",
    )


def predictor(state, system, phases):
    """As common.predictor, with half widths."""
    members = []
    for one in state["splits"]:
        trained, (inputs, targets) = common.restored(one["networks"]), [part.numpy() for part in one["rows"]]
        (scalers,) = trained.scalers
        process = gaussian_process(*scalers.transform(inputs, targets), one["lengths"].numpy())
        expansion = {phase: (c.numpy(), intercept) for phase, (c, intercept) in one["expansion"].items()}
        members.append((Teachers(process, scalers, expansion), trained))

    def predict_alloys(fractions, names, clusters=None):
        found = [
            predict(*one, state["n_networks"], system, fractions, names, state["clusters"]) for one in members
        ]
        predicted = np.concatenate([values for values, _ in found])
        return predicted, {"half_width_90": np.mean([half_width for _, half_width in found], axis=0)}

    return predict_alloys


def main():
    chosen = settings.read(
        globals(), TARGET=settings.one_of(*common.TARGETS), NETWORKS=settings.number(int, 2)
    )
    chosen.METHOD, chosen.PHASE_INPUT = METHOD, "named"
    if prediction.predicts_only(chosen):
        return
    data, splits = report.load(chosen, cells="lattice")
    outcome = fit(
        data, chosen.DATA_DIR, splits, chosen.SEEDS, chosen.ALLOYS, chosen.NETWORKS, chosen.CLUSTERS,
        chosen.ALPHA, (chosen.SOURCE_EPOCHS, chosen.SOURCE_LEARNING_RATE),
        (chosen.EPOCHS, chosen.LEARNING_RATE), chosen.BATCH_SIZE,
    )  # fmt: skip
    half_widths = outcome.columns["half_width_90"]
    within = [
        (np.abs(outcome.predicted[i].mean(0) - data.targets) <= half_widths[i])[split.test]
        for i, split in enumerate(splits)
    ]
    print(f"the stated 90 % interval holds {np.concatenate(within).mean():.0%} of the test alloys")
    report.report(chosen, data, splits, outcome, how="as set, none chosen on a label")


if __name__ == "__main__":
    settings.run(main)
