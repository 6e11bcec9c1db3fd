"""Networks that learn from a cluster expansion (CE) too: transfer learning (TL), data augmentation (DA).

    python main_transfer.py
    python main_transfer.py --method da --target Ms
    python main_transfer.py --seeds 0-7 --splits 0-7 --select-by validation

Reads the occupation tables of structure_stat.py. For each split, fits the CE of generate.py to the
training rows and labels new alloys with it. TL: a network learns these, then the DFT training set,
its embedding of the elements frozen. DA: it learns a selection of these and the training set
together. Prints and writes what main.py does, and takes --phase-input as that does.

With SELECT_BY reference the clusters are counted on the cells as given, as published. These are relaxed,
a test alloy's too, so with validation they are counted on the lattice (structure_stat.py --cells lattice).
"""

from functools import partial

import settings  # first: from here on Ctrl-C leaves no traceback

# isort: split
import numpy as np
import torch

import common
import generate
import prediction
import report

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results"  # folder for what this script writes
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, μB/atom
METHOD = "tl"  # tl: transfer learning; da: data augmentation
ALLOYS = "4+5"  # 4+5: samples and test alloys of four and five elements; Total: of two to five
PHASE_INPUT = "named"  # the network is told the lattice in the name, as published, or the phase found
PERCENT = 100  # share of the training set's four- and five-element alloys kept, 0 to 100
SEEDS = "0"  # networks per split: a number, a range or a list, as 0 or 0-7 or 0,3,5
SPLITS = "0"  # random splits into training and test set, likewise; 0 is the study's
SELECT_BY = "reference"  # epoch of least loss on the test set (reference, as published) or validation
HOLD_OUT = 0.2  # share of the training set's four- and five-element alloys for validation
REFIT = True  # after validation, train on the whole training set for as many epochs
CLUSTERS = ["points", "pairs", "triplets"]  # blocks the CE is fitted to; second_pairs may be added
ALPHA = None  # strength of the CE's ridge penalty; None: as published, by target and clusters; or tuned
AUGMENT = 75  # CE-labelled alloys a phase for da
SOURCE_EPOCHS = 20  # of tl on the CE-labelled alloys, last state kept
SOURCE_LEARNING_RATE = 0.001  # of Adam, there
EPOCHS = 1000  # most epochs (tl: on the training set)
PATIENCE = 100  # epochs without a better one before training stops
BATCH_SIZE = 16  # alloys
LEARNING_RATE = None  # None: 0.05 of SGD (tl), 0.001 of Adam (da)
DEVICE = "auto"  # auto (CUDA, else MPS, else CPU), cpu, cuda or mps
PREDICT = None  # alloys: formulas, POSCARs, folders of them, or a CSV file; None: only train and report
CHECKPOINT = None  # with PREDICT: the .pt of an earlier run, in place of training
# --------------------------------------------------------------------------------------------------


def cells_for(rule):
    """What clusters are counted on: under the paper's rule of the epoch the cells as DFT relaxed them."""
    return "given" if rule == "reference" else "lattice"


def label_by_ce(data, samples, train_rows, clusters=CLUSTERS, alpha=ALPHA):
    """The samples labelled by the CE of each split's training rows: [{phase: (inputs, labels)}, ...]."""
    return [generate.label(generate.fit_ce(data, rows, clusters, alpha), samples) for rows in train_rows]


def transfer(
    data, labelled, train_rows, watch_rows, epochs, seeds, *, rate=LEARNING_RATE,
    source_epochs=SOURCE_EPOCHS, source_rate=SOURCE_LEARNING_RATE,
    batch_size=BATCH_SIZE, patience=PATIENCE, device=DEVICE,
):  # fmt: skip
    """TL: networks of all seeds for each split, taught by its CE and then by its rows: common.Trained.

    labelled: from `label_by_ce`. source_epochs, source_rate: of Adam on the samples. rate: of SGD on the
    rows; None: 0.05. Others: as in `main.scratch`.
    """
    network, generators = common.draw(data, seeds * len(train_rows))
    source = [tuple(np.concatenate(part) for part in zip(*one.values())) for one in labelled]
    adam, sgd = (
        partial(common.Adam, rate=source_rate),
        partial(common.SGD, rate=0.05 if rate is None else rate),
    )
    common.fit_networks(network, generators, source, None, adam, source_epochs, batch_size, None, device)
    network.embedding.requires_grad_(False)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds * len(train_rows)]  # as published
    sets, watch = data.sets(train_rows), data.sets(watch_rows)
    return common.fit_networks(network, generators, sets, watch, sgd, epochs, batch_size, patience, device)


def augment(
    data, labelled, selected, train_rows, watch_rows, epochs, seeds, *,
    rate=LEARNING_RATE, batch_size=BATCH_SIZE, patience=PATIENCE, device=DEVICE,
):  # fmt: skip
    """DA: networks of all seeds for each split, taught by its rows and the selected samples together.

    selected: numbers of samples, from `generate.select`. rate: of Adam; None: 0.001. Others: as in
    `transfer`. The rows of a phase come before its samples, and fcc before bcc.
    """
    network, generators = common.draw(data, seeds * len(train_rows))
    sets = []
    for rows, of_phase in zip(train_rows, labelled):
        parts = []
        for phase, (inputs, labels) in of_phase.items():
            own = generate.rows_of(data, rows, phase)
            parts += [(data.inputs[own], data.targets[own]), (inputs[selected], labels[selected])]
        sets.append(tuple(map(np.concatenate, zip(*parts))))
    watch, adam = data.sets(watch_rows), partial(common.Adam, rate=0.001 if rate is None else rate)
    return common.fit_networks(network, generators, sets, watch, adam, epochs, batch_size, patience, device)


def main():
    chosen = settings.read(
        globals(), TARGET=settings.one_of(*common.TARGETS), METHOD=settings.one_of("tl", "da")
    )
    if prediction.predicts_only(chosen):
        return
    data, splits = report.load(chosen, cells=cells_for(chosen.SELECT_BY))
    samples = generate.make_samples(chosen.DATA_DIR, data, chosen.ALLOYS, chosen.CLUSTERS)
    if chosen.METHOD == "da":
        selected = generate.select(samples, chosen.AUGMENT, chosen.ALLOYS)

    def fit(train_rows, watch_rows, epochs):
        loop = {
            "rate": chosen.LEARNING_RATE, "batch_size": chosen.BATCH_SIZE,
            "patience": chosen.PATIENCE, "device": chosen.DEVICE,
        }  # fmt: skip
        labelled = label_by_ce(data, samples, train_rows, chosen.CLUSTERS, chosen.ALPHA)
        if chosen.METHOD == "da":
            return augment(data, labelled, selected, train_rows, watch_rows, epochs, chosen.SEEDS, **loop)
        source = {"source_epochs": chosen.SOURCE_EPOCHS, "source_rate": chosen.SOURCE_LEARNING_RATE}
        return transfer(data, labelled, train_rows, watch_rows, epochs, chosen.SEEDS, **source, **loop)

    trained = common.fit_selected(
        fit, data.table, splits, chosen.SELECT_BY, chosen.EPOCHS, chosen.HOLD_OUT, chosen.REFIT
    )
    report.report(chosen, data, splits, report.of_networks(trained, data))


if __name__ == "__main__":
    settings.run(main)
