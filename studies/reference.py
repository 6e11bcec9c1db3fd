"""The published reference figures beside what the scripts give on the study's data.

    python studies/reference.py --data-dir path/to/HEA_data --results-dir reference_results

Runs structure_stat.py, main.py and main_transfer.py with their defaults and prints a table in
Markdown: figure, the study's value, the published scripts' or method's value when run again (CPU,
torch 2.13.0), this run's, and its difference from the latter. `make reference` calls it.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent

# Split 0, seed 0, Ef: (the study's own figure, the published scripts or method run again).
FIGURES = {
    "scratch": {
        "train_R2": (0.9576119, 0.9576118),
        "train_loss": (0.042388, 0.042388),
        "test_R2": (0.9109526, 0.9109527),
        "test_loss": (0.051504, 0.051504),
    },
    "tl": {
        "train_R2": (0.9501819, 0.9392294),
        "train_loss": (0.049818, 0.060771),
        "test_R2": (0.9466269, 0.9476033),
        "test_loss": (0.030870, 0.030306),
    },
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", required=True, type=Path, help="the study's HEA_data")
    parser.add_argument("--results-dir", default=Path("reference_results"), type=Path)
    arguments = parser.parse_args()
    flags = ["--data-dir", arguments.data_dir, "--table-dir", arguments.results_dir]
    results = ["--results-dir", arguments.results_dir]
    for script, more in (("structure_stat", []), ("main", results), ("main_transfer", results)):
        finished = subprocess.run([sys.executable, ROOT / f"{script}.py", *flags, *more], check=False)
        if finished.returncode:
            sys.exit(finished.returncode)

    print("\n| Ef, split 0, seed 0 | the study | run again | here | difference |\n|---|---|---|---|---|")
    for method, figures in FIGURES.items():
        row = pd.read_csv(arguments.results_dir / f"{method}_Ef_4+5_100_reference_metrics.csv").iloc[0]
        for name, (study, again) in figures.items():
            values = f"{study:.6f} | {again:.6f} | {row[name]:.6f} | {row[name] - again:+.1e}"
            print(f"| {method} {name} | {values} |")


if __name__ == "__main__":
    main()
