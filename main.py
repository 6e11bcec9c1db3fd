"""Networks trained on DFT data alone: Scratch and Scratch'.

    python main.py
    python main.py --target Ms --method scratch_prime
    python main.py --seeds 0-7 --splits 0-7 --select-by validation

Reads Database.csv. Trains a network for each split and seed, prints R2 and loss of each, and writes a folder
RESULTS_DIR/<method>_<target>_<alloys>_<percent>_<rule>: settings, metrics, predictions, losses, a parity
plot and a checkpoint, which beyond/predict.py reads.

Many relaxed cells are no longer of the phase in their name. With PHASE_INPUT found a network is told the
shares of fcc, bcc and hcp that each cell has (tables of structure_stat.py): another question than the
published one, what an alloy has in a phase that one asks for, hcp included.
"""

from functools import partial

import common
import report
import settings

# ---- settings ------------------------------------------------------------------------------------
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, μB/atom
METHOD = "scratch"  # scratch: all training alloys; scratch_prime: those of four and five elements
ALLOYS = "4+5"  # 4+5: test alloys of four and five elements; Total: of two to five
PHASE_INPUT = "named"  # the network is told the lattice in the name, as published, or the phase found
PERCENT = 100  # share of the training set's four- and five-element alloys kept, 0 to 100
SEEDS = "0"  # networks per split: a number, a range or a list, as 0 or 0-7 or 0,3,5
SPLITS = "0"  # random splits into training and test set, likewise; 0 is the study's; all: no test set
SELECT_BY = "reference"  # epoch of least loss on the test set (reference, as published) or validation
HOLD_OUT = 0.2  # share of the training set's four- and five-element alloys for validation
REFIT = True  # after validation, train on the whole training set for as many epochs
EPOCHS = 1000  # most epochs
PATIENCE = 100  # epochs without a better one before training stops
BATCH_SIZE = 16  # alloys
LEARNING_RATE = None  # of Adam; None: 0.005 (Ef), 0.001 (Ms)
# --------------------------------------------------------------------------------------------------


def scratch(data, train_rows, watch_rows, cfg, epochs=None):
    """Networks of all seeds for each split, trained on its rows: common.Trained.

    train_rows, watch_rows: row numbers, an array per split; watch_rows may be None. epochs: in place of
    EPOCHS, as in `common.fit_networks`.
    """
    networks, generators = common.make_networks(data, cfg.SEEDS * len(train_rows), unused_convolution=True)
    rate = common.TARGETS[data.target].rate if cfg.LEARNING_RATE is None else cfg.LEARNING_RATE
    sets, watch, adam = data.sets(train_rows), data.sets(watch_rows), partial(common.Adam, rate=rate)
    return common.fit_networks(networks, generators, sets, watch, adam, cfg, epochs)


def main():
    cfg = settings.read(globals(), TARGET=tuple(common.TARGETS), METHOD=("scratch", "scratch_prime"))
    settings.output_folder(cfg.RESULTS_DIR)
    data = common.load_data(cfg)
    splits = common.splits_of(data, cfg, high_only=cfg.METHOD == "scratch_prime")
    trained = common.fit_selected(scratch, data, splits, cfg)
    report.report(cfg, data, splits, report.of_networks(cfg, data, splits, trained))


if __name__ == "__main__":
    settings.run(main)
