"""Networks that learn from a cluster expansion (CE) too: transfer learning (TL), data augmentation (DA).

    python main_transfer.py
    python main_transfer.py --method da --target Ms
    python main_transfer.py --seeds 0-7 --splits 0-7 --select-by validation

Reads the occupation tables of structure_stat.py. For each split, fits the CE of generate.py to the
training rows and labels new alloys with it. TL: a network learns these, then the DFT training set,
its embedding of the elements frozen. DA: it learns a selection of these and the training set
together. Prints and writes what main.py does, and takes PHASE_INPUT as that does.

With SELECT_BY reference the clusters are counted on the cells as given, as published. These are relaxed,
a test alloy's too, so with validation they are counted on the lattice.
"""

from functools import partial

import numpy as np
import torch

import common
import generate
import report
import settings

# ---- settings ------------------------------------------------------------------------------------
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, μB/atom
METHOD = "tl"  # tl: transfer learning; da: data augmentation
ALLOYS = "4+5"  # 4+5: samples and test alloys of four and five elements; Total: of two to five
PHASE_INPUT = "named"  # the network is told the lattice in the name, as published, or the phase found
PERCENT = 100  # share of the training set's four- and five-element alloys kept, 0 to 100
SEEDS = "0"  # networks per split: a number, a range or a list, as 0 or 0-7 or 0,3,5
SPLITS = "0"  # random splits into training and test set, likewise; 0 is the study's; all: no test set
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
# --------------------------------------------------------------------------------------------------


def cells_for(rule):
    """What clusters are counted on: under the paper's rule of the epoch the cells as DFT relaxed them."""
    return "given" if rule == "reference" else "lattice"


def transfer(data, train_rows, watch_rows, cfg, epochs=None, *, samples):
    """TL: networks of all seeds for each split, taught by its CE and then by its rows: common.Trained.

    samples: of `generate.make_samples`. Others: as in `main.scratch`.
    """
    networks, generators = common.make_networks(data, cfg.SEEDS * len(train_rows))
    source = []
    for rows in train_rows:
        labelled = generate.label(generate.fit_ce(data, rows, cfg.CLUSTERS, cfg.ALPHA), samples)
        source.append(tuple(map(np.concatenate, zip(*labelled.values()))))
    if cfg.SOURCE_EPOCHS:
        adam = partial(common.Adam, rate=cfg.SOURCE_LEARNING_RATE)
        common.fit_networks(networks, generators, source, None, adam, cfg, epochs=cfg.SOURCE_EPOCHS)
    for network in networks:
        network.embedding.requires_grad_(False)
    generators = [torch.Generator().manual_seed(seed) for seed in cfg.SEEDS * len(train_rows)]  # as published
    sgd = partial(common.SGD, rate=0.05 if cfg.LEARNING_RATE is None else cfg.LEARNING_RATE)
    sets, watch = data.sets(train_rows), data.sets(watch_rows)
    return common.fit_networks(networks, generators, sets, watch, sgd, cfg, epochs)


def augment(data, train_rows, watch_rows, cfg, epochs=None, *, samples):
    """DA: networks of all seeds for each split, taught by its rows and the selected samples together.

    The rows of a phase come before its samples, and fcc before bcc. Parameters: as in `transfer`.
    """
    networks, generators = common.make_networks(data, cfg.SEEDS * len(train_rows))
    sets, selected = [], generate.select(samples, cfg.AUGMENT, cfg.ALLOYS)
    for rows in train_rows:
        parts = []
        labelled = generate.label(generate.fit_ce(data, rows, cfg.CLUSTERS, cfg.ALPHA), samples)
        for phase, (inputs, labels) in labelled.items():
            own = generate.rows_of(data, rows, phase)
            parts += [(data.inputs[own], data.targets[own]), (inputs[selected], labels[selected])]
        sets.append(tuple(map(np.concatenate, zip(*parts))))
    adam = partial(common.Adam, rate=0.001 if cfg.LEARNING_RATE is None else cfg.LEARNING_RATE)
    return common.fit_networks(networks, generators, sets, data.sets(watch_rows), adam, cfg, epochs)


METHODS = {"tl": transfer, "da": augment}
KINDS = {
    "TARGET": tuple(common.TARGETS), "METHOD": tuple(METHODS), "AUGMENT": (int, 1, 1e9),
    "SOURCE_EPOCHS": (int, 0, 1e9), "SOURCE_LEARNING_RATE": settings.RATE,
}  # fmt: skip


def main():
    cfg = settings.read(globals(), **KINDS)
    settings.output_folder(cfg.RESULTS_DIR)
    data = common.load_data(cfg, cells_for(cfg.SELECT_BY))
    splits = common.splits_of(data, cfg)
    method = partial(METHODS[cfg.METHOD], samples=generate.make_samples(cfg, data))
    trained = common.fit_selected(method, data, splits, cfg)
    report.report(cfg, data, splits, report.of_networks(cfg, data, splits, trained))


if __name__ == "__main__":
    settings.run(main)
