"""Networks that learn from a cluster expansion (CE) too: transfer learning (TL), data augmentation (DA).

    python main_transfer.py
    python main_transfer.py --method da --target Ms
    python main_transfer.py --seeds 0-7 --splits 0-7 --select-by validation

Reads the occupation tables of structure_stat.py. For each split, fits the CE of generate.py to the
training rows and labels new alloys with it. TL: a network learns these, then the DFT training set,
its embedding of the elements frozen. DA: it learns a selection of these and the training set
together. Prints and writes what main.py does, named <method>_<target>.
"""

import numpy as np
import torch

import committee
import common
import generate
import networks
import report

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results"  # folder for what this script writes
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, mub/atom
METHOD = "tl"  # tl: transfer learning; da: data augmentation; tl_committee: committee.py
ALLOYS = "4+5"  # 4+5: samples and test alloys of four and five elements; Total: of two to five
PERCENT = 100  # share of the training set's four- and five-element alloys kept, 0 to 100
SEEDS = "0"  # networks per split: a number, a range or a list, as 0 or 0-7 or 0,3,5
SPLITS = "0"  # random splits into training and test set, likewise; 0 is the study's
SELECT_BY = "reference"  # epoch of least loss on the test set (reference, as published) or validation
HOLD_OUT = 0.2  # share of the training set's four- and five-element alloys for validation
REFIT = True  # after validation, train on the whole training set for as many epochs
CLUSTERS = "points pairs triplets"  # blocks the CE is fitted to; second_pairs may be added
ALPHA = None  # strength of the CE's ridge penalty; None: 1e-4 (Ef), 1e-2 (Ms)
AUGMENT = 75  # CE-labelled alloys a phase for da
SOURCE_EPOCHS = 20  # of tl on the CE-labelled alloys, last state kept
SOURCE_LEARNING_RATE = 0.001  # of Adam, there
EPOCHS = 1000  # most epochs (tl: on the training set)
PATIENCE = 100  # epochs without a better one before training stops
BATCH_SIZE = 16  # alloys
LEARNING_RATE = None  # None: 0.05 of SGD (tl), 0.001 of Adam (da)
DEVICE = "auto"  # auto (CUDA, else MPS, else CPU), cpu, cuda or mps
PREDICT = None  # formulas, as FeNiCoCr Fe40Mn40Co20, or a CSV file; None: only train and report
CHECKPOINT = None  # with PREDICT: the .pt of an earlier run, in place of training
# --------------------------------------------------------------------------------------------------

DEFAULT_RATE = {"tl": 0.05, "da": 0.001}


def fit(settings, data, train_rows, watch_rows, epochs):
    """Networks of all seeds for each split, by METHOD.

    train_rows, watch_rows: row numbers, an array per split; watch_rows may be None.
    epochs, watch_rows: as in `networks.train`. Returns a networks.Model.
    """
    rate = settings.LEARNING_RATE
    rate = DEFAULT_RATE[settings.METHOD] if rate is None else rate
    samples = generate.make_samples(settings, data.table, data.system)
    labelled = [
        generate.label(generate.fit_ce(settings, data.table, data.system, rows), samples)
        for rows in train_rows
    ]
    train_sets, watch_sets = data.sets(train_rows), data.sets(watch_rows)
    seeds, n_elements = settings.SEEDS * len(train_rows), len(data.system.elements)
    weights, generators = networks.initial_weights(seeds, n_elements)

    if settings.METHOD == "da":
        chosen = generate.select(samples, settings.AUGMENT, settings.ALLOYS)
        in_all = np.concatenate([chosen + i * len(samples.kind) for i in range(len(samples.inputs))])
        train_sets = [
            tuple(np.concatenate([dft, ce[in_all]]) for dft, ce in zip(*pair))
            for pair in zip(train_sets, labelled)
        ]
        scalers = [networks.Scalers.fit(*one) for one in train_sets]
        return networks.train_networks(
            settings, weights, generators, scalers, train_sets, watch_sets, networks.adam(rate), epochs
        )

    scalers = [networks.Scalers.fit(*one) for one in labelled]
    source = networks.train_networks(
        settings,
        weights,
        generators,
        scalers,
        labelled,
        None,
        networks.adam(settings.SOURCE_LEARNING_RATE),
        settings.SOURCE_EPOCHS,
    )
    scalers = [networks.Scalers.fit(*one) for one in train_sets]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # seeded again, as published
    return networks.train_networks(
        settings,
        source.weights,
        generators,
        scalers,
        train_sets,
        watch_sets,
        networks.sgd(rate),
        epochs,
        frozen=("embedding",),
    )


def main():
    settings = common.read_settings(globals(), METHOD=common.one_of("tl", "da", "tl_committee"))
    if report.predicts_only(settings):
        return
    data = common.load_data(settings)
    splits = common.make_splits(settings, data.table)
    if settings.METHOD == "tl_committee":
        outcome = committee.fit(settings, data, splits)
    else:
        outcome = networks.outcome(networks.fit_selected(settings, data, splits, fit), data)
    report.report(settings, data, splits, outcome)
    if settings.PREDICT:
        report.predict_for(settings, report.result_name(settings, ".pt"))


if __name__ == "__main__":
    common.run(main)
