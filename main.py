"""Networks trained on DFT data alone: Scratch and Scratch'.

    python main.py
    python main.py --target Ms --method scratch_prime
    python main.py --seeds 0-7 --splits 0-7 --select-by validation

Reads the occupation tables of structure_stat.py. Trains a network for each split and seed, prints
R2 and loss of each, and writes to RESULTS_DIR, named <method>_<target>_<alloys>_<percent>_<rule>:
settings, metrics, predictions, losses, a parity plot and a checkpoint.

Many relaxed cells are no longer of the phase in their name. With --phase-input found a network is told
the shares of fcc, bcc and hcp that each cell has: another question than the published one, what an alloy
has in a phase that one asks for, hcp included.
"""

from functools import partial

import settings  # first: from here on Ctrl-C leaves no traceback

# isort: split
import common
import prediction
import report

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results"  # folder for what this script writes
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, μB/atom
METHOD = "scratch"  # scratch: all training alloys; scratch_prime: those of four and five elements
ALLOYS = "4+5"  # 4+5: test alloys of four and five elements; Total: of two to five
PHASE_INPUT = "named"  # the network is told the lattice in the name, as published, or the phase found
PERCENT = 100  # share of the training set's four- and five-element alloys kept, 0 to 100
SEEDS = "0"  # networks per split: a number, a range or a list, as 0 or 0-7 or 0,3,5
SPLITS = "0"  # random splits into training and test set, likewise; 0 is the study's
SELECT_BY = "reference"  # epoch of least loss on the test set (reference, as published) or validation
HOLD_OUT = 0.2  # share of the training set's four- and five-element alloys for validation
REFIT = True  # after validation, train on the whole training set for as many epochs
EPOCHS = 1000  # most epochs
PATIENCE = 100  # epochs without a better one before training stops
BATCH_SIZE = 16  # alloys
LEARNING_RATE = None  # of Adam; None: 0.005 (Ef), 0.001 (Ms)
DEVICE = "auto"  # auto (CUDA, else MPS, else CPU), cpu, cuda or mps
PREDICT = None  # alloys: formulas, POSCARs, folders of them, or a CSV file; None: only train and report
CHECKPOINT = None  # with PREDICT: the .pt of an earlier run, in place of training
# --------------------------------------------------------------------------------------------------


def scratch(
    data, train_rows, watch_rows, epochs, seeds, *,
    rate=LEARNING_RATE, batch_size=BATCH_SIZE, patience=PATIENCE, device=DEVICE,
):  # fmt: skip
    """Networks of all seeds for each split, trained on the rows of it: common.Trained.

    train_rows, watch_rows: row numbers, an array per split; watch_rows may be None.
    epochs, watch_rows, batch_size, patience: as in `common.train`. rate: of Adam; None: the published one.
    """
    network, generators = common.draw(data, seeds * len(train_rows), unused_convolution=True)
    adam = partial(common.Adam, rate=common.TARGETS[data.target].rate if rate is None else rate)
    sets, watch = data.sets(train_rows), data.sets(watch_rows)
    return common.fit_networks(network, generators, sets, watch, adam, epochs, batch_size, patience, device)


def main():
    chosen = settings.read(
        globals(), TARGET=settings.one_of(*common.TARGETS), METHOD=settings.one_of("scratch", "scratch_prime")
    )
    if prediction.predicts_only(chosen):
        return
    data, splits = report.load(chosen, high_only=chosen.METHOD == "scratch_prime")

    def fit(train_rows, watch_rows, epochs):
        return scratch(
            data, train_rows, watch_rows, epochs, chosen.SEEDS, rate=chosen.LEARNING_RATE,
            batch_size=chosen.BATCH_SIZE, patience=chosen.PATIENCE, device=chosen.DEVICE,
        )  # fmt: skip

    trained = common.fit_selected(
        fit, data.table, splits, chosen.SELECT_BY, chosen.EPOCHS, chosen.HOLD_OUT, chosen.REFIT
    )
    report.report(chosen, data, splits, report.of_networks(trained, data))


if __name__ == "__main__":
    settings.run(main)
