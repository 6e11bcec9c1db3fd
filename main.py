"""Networks trained on DFT data alone: Scratch and Scratch'.

    python main.py
    python main.py --target Ms --method scratch_prime
    python main.py --seeds 0-7 --splits 0-7 --select-by validation

Reads the occupation tables of structure_stat.py. Trains a network for each split and seed, prints
R2 and loss of each, and writes to RESULTS_DIR, named <method>_<target>: metrics, predictions and
losses (CSV), a parity plot and a checkpoint.
"""

import common
import networks
import report

# ---- settings ------------------------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results"  # folder for what this script writes
TARGET = "Ef"  # Ef: formation energy, eV/atom; Ms: magnetisation, mub/atom
METHOD = "scratch"  # scratch: all training alloys; scratch_prime: those of four and five elements
ALLOYS = "4+5"  # 4+5: test alloys of four and five elements; Total: of two to five
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
PREDICT = None  # formulas, as FeNiCoCr Fe40Mn40Co20, or a CSV file; None: only train and report
CHECKPOINT = None  # with PREDICT: the .pt of an earlier run, in place of training
# --------------------------------------------------------------------------------------------------

DEFAULT_RATE = {"Ef": 0.005, "Ms": 0.001}


def fit(settings, data, train_rows, watch_rows, epochs):
    """Networks of all seeds for each split.

    train_rows, watch_rows: row numbers, an array per split; watch_rows may be None.
    epochs, watch_rows: as in `networks.train`. Returns a networks.Model.
    """
    rate = settings.LEARNING_RATE
    rate = DEFAULT_RATE[settings.TARGET] if rate is None else rate
    train_sets = data.sets(train_rows)
    scalers = [networks.Scalers.fit(*one) for one in train_sets]
    seeds = settings.SEEDS * len(train_rows)
    weights, generators = networks.initial_weights(seeds, len(data.system.elements), unused_convolution=True)
    return networks.train_networks(
        settings, weights, generators, scalers, train_sets, data.sets(watch_rows), networks.adam(rate), epochs
    )


def main():
    settings = common.read_settings(globals(), METHOD=common.one_of("scratch", "scratch_prime"))
    if report.predicts_only(settings):
        return
    data = common.load_data(settings)
    splits = common.make_splits(settings, data.table, high_only=settings.METHOD == "scratch_prime")
    model = networks.fit_selected(settings, data, splits, fit)
    report.report(settings, data, splits, networks.outcome(model, data))
    if settings.PREDICT:
        report.predict_for(settings, report.result_name(settings, ".pt"))


if __name__ == "__main__":
    common.run(main)
