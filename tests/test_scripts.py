"""Each script as a user runs it, with tiny settings: what it writes, and under which name."""

import re
import shutil
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, edited, files, run

import common

DATA, TRAINING = "data-dir table-dir", "epochs patience batch-size learning-rate device predict checkpoint"
CHOICE = "results-dir target method alloys phase-input percent seeds splits select-by hold-out refit"
SOURCE = "clusters alpha augment source-epochs source-learning-rate"
FLAGS = {
    "structure_stat.py": f"{DATA} cells",
    "generate.py": f"{DATA} results-dir target alloys clusters alpha cells",
    "main.py": f"{DATA} {CHOICE} {TRAINING}",
    "main_transfer.py": f"{DATA} {CHOICE} {SOURCE} {TRAINING}",
}
METHODS = {
    "scratch": ["main.py"], "scratch_prime": ["main.py", "--percent", "50.5"],
    "tl": ["main_transfer.py", "--source-epochs", "2"], "da": ["main_transfer.py", "--augment", "20"],
}  # fmt: skip


@pytest.mark.parametrize("script", FLAGS)
def test_flags(script):
    """Those of earlier releases; to drop or rename one breaks its users' commands."""
    flags = [f"--{name}" for name in f"{FLAGS[script]} elements excluded-pairs".split()]
    error = run(script, "--no-such-flag", status=2).err
    assert error.startswith(f"{script}: unrecognized") and error.count("\n") == 1
    assert error.split("the flags are ")[1].split() == flags
    described = run(script, "--help").out
    assert "mub" not in described
    assert all(re.search(rf"^  {flag} .*\n? *\w", described, re.MULTILINE) for flag in flags)


@pytest.mark.parametrize("method", METHODS)
def test_training(small_data, tmp_path, method):
    """The figures follow from one another: printed ones from the metrics, the ensemble's from predictions."""
    script, *more = METHODS[method]
    flags = ["--method", method, "--seeds", "0-1", "--splits", "0,2", "--target", "Ms", *TINY, *more]
    printed = run(script, "--data-dir", small_data, "--results-dir", tmp_path, *flags).out
    assert "SEEDS 0-1" in printed.splitlines()[0] and "EPOCHS 3" in printed.splitlines()[0]
    name = tmp_path / f"{method}_Ms_4+5_{'50.5' if method == 'scratch_prime' else '100'}_reference"
    metrics = pd.read_csv(f"{name}_metrics.csv")
    assert metrics[["split", "seed"]].to_numpy().tolist() == [[0, 0], [0, 1], [2, 0], [2, 1]]
    lines = np.array(re.findall(r"R2: (\S+), loss: (\S+)", printed), float).reshape(4, 4)
    np.testing.assert_allclose(metrics[["train_R2", "train_loss", "test_R2", "test_loss"]], lines, atol=1e-6)

    found, summary = (
        pd.read_csv(f"{name}_predictions.csv"),
        pd.read_csv(f"{name}_summary.csv").set_index("of"),
    )
    assert {*found.unit, *metrics.unit} == {"μB/atom"}
    figure = r"[-\d.]+ ± [\d.]+"  # R2 has no unit
    shown = rf"2 split\(s\) x 2 seed\(s\), test: R2 {figure}, RMSE {figure} μB/atom, MAE {figure} μB/atom\n"
    assert len(re.findall(shown, printed)) == 2
    found = found[found.set == "test"].assign(error=lambda frame: frame["mean"] - frame.true)
    errors = found.groupby("split").error.agg(lambda error: (error**2).mean() ** 0.5)
    assert summary.test_RMSE_mean["ensemble"] == pytest.approx(errors.mean())
    for n in (1, 2):
        within = (found.error.abs() <= n * found["std"]).mean()
        assert summary[f"within_{n}_std"]["ensemble"] == pytest.approx(within) and within < 1
    by_split = metrics.groupby("split").test_RMSE.mean()
    assert summary.test_RMSE_std["single networks"] == pytest.approx(by_split.std())
    assert (tmp_path / f"{name.name}_parity.png").stat().st_size > 5000


@pytest.mark.parametrize(("rate", "stuck"), [("1e-9", ["2"]), ("0.01", [])])
def test_networks_that_learn_nothing_are_counted(small_data, tmp_path, rate, stuck):
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, *TINY, "--seeds", "0-1"]
    printed = run("main.py", *flags, "--learning-rate", rate).out
    assert re.findall(r"(\d+) of 2 networks learned nothing", printed) == stuck


def test_of_many_networks_some_are_printed(small_data, tmp_path):
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, *TINY, "--seeds", "0-18"]
    printed = run("main.py", *flags).out
    assert printed.count("Test: ") == 16 and "\nand 3 more, in the file of metrics\n" in printed
    assert len(pd.read_csv(next(tmp_path.glob("*_metrics.csv")))) == 19


@pytest.mark.parametrize("alloys", ["4+5", "Total"])
def test_parity_plots(small_data, tmp_path, pictures, alloys):
    """Method, data, unit and what was asked, in words; intervals of the method that states them."""
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, "--target", "Ms", "--alloys", alloys]
    run("main.py", *flags, *TINY, "--percent", "50", "--phase-input", "found")
    run("main_committee.py", *flags, "--networks", "2", "--source-epochs", "1", "--epochs", "2")
    (plain,), (bars,), (held,) = (
        [text for name, text in pictures.items() if part in name]
        for part in ("scratch", "fixed_parity", "fixed_reliability")
    )
    assert "magnetisation" in held and "in the phase it has" in held and "CHGNet" in held
    words = {"4+5": "of four and more elements, 50 % of them", "Total": "50 % of those of four and more"}
    for text in (words[alloys], "Scratch, phase as found, epoch selected on the test set", "CHGNet"):
        assert text in plain
    assert re.search(r"test \(\d+\): R² \S+, RMSE \S+ μB/atom", plain) and "magnetisation in the" in plain
    assert "90 % interval" in bars and "Committee, phase as named" in bars and "90 %" not in plain


@pytest.mark.parametrize(("cells", "words"), [("given", "on cells as given"), ("lattice", "on the lattice")])
def test_what_an_expansion_is_validated_on(small_data, tmp_path, cells, words):
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, "--cells", cells]
    assert run("generate.py", *flags).out.count(f" eV/atom ({words}") == 2


def test_pictures_of_interactions(small_data, tmp_path, pictures):
    run("generate.py", "--data-dir", small_data, "--results-dir", tmp_path, "--clusters", "points")
    for phase in common.PHASES:
        said = next(text for name, text in pictures.items() if f"eci_{phase}" in name)
        for words in (f"Cluster expansion of the formation energy in {phase}", "CHGNet", "(eV/atom)"):
            assert words in said


@pytest.mark.parametrize(
    ("script", "more"), [("main.py", ["--seeds", "5"]), ("generate.py", ["--alpha", "1"])]
)
def test_names_of_runs(small_data, tmp_path, script, more):
    """A run replaces its own earlier results, wherever its data lies, and never those of another run."""
    data, moved = (shutil.copytree(small_data, tmp_path / name) for name in ("data", "moved"))
    frame = pd.read_csv(data / "Database.csv", index_col=0)
    frame["Ms (mub/atom)"] += 1  # the tables and Ef stay
    frame.to_csv(data / "Database.csv")
    after, flags = [], ["--results-dir", tmp_path / "out", *(TINY if script == "main.py" else [])]
    for folder, others in ((small_data, []), (small_data, more), (data, []), (moved, []), (small_data, more)):
        if len(after) == 3:
            for path in (tmp_path / "out").glob("*.csv"):
                path.write_text("changed")
        run(script, "--data-dir", folder, *flags, *others)
        after.append(files(tmp_path / "out"))
    assert after[0].items() <= after[1].items() <= after[2].items() and len(after[2]) == 3 * len(after[0])
    assert after[3].keys() == after[4].keys() == after[2].keys()
    for path, content in after[4].items():
        expected = b"changed" if "_3" in path.name else after[2][path]
        assert path.suffix in (".png", ".pt") or path.suffix == ".json" or content == expected, path


def test_constants_as_python_values(small_data, tmp_path):
    """What a user writes who knows Python is the same run as what the flags take."""
    lines = ["SEEDS = range(3)", "SPLITS = [0, 2]", "PERCENT = 50", "ALLOYS = str('4+5')"]
    flags = ["--data-dir", small_data, "--results-dir", tmp_path / "out", *TINY]
    run(edited(tmp_path, *lines), *flags)
    run("main.py", *flags, "--seeds", "0-2", "--splits", "0", "2", "--percent", "50")
    assert len(files(tmp_path / "out")) == 7
    assert len(pd.read_csv(tmp_path / "out" / "scratch_Ef_4+5_50_reference_metrics.csv")) == 6


def with_targets(small_data, folder, change):
    shutil.copytree(small_data / "POSCARS", folder / "POSCARS")
    change(pd.read_csv(small_data / "Database.csv", index_col=0)).to_csv(folder / "Database.csv")
    run("structure_stat.py", "--data-dir", folder)
    return folder


@pytest.mark.parametrize(("target", "other"), [("Ef", "Ms"), ("Ms", "Ef")])
def test_a_database_without_one_of_the_targets(small_data, tmp_path, target, other):
    column = common.TARGETS[other].column
    data = with_targets(small_data, tmp_path / "data", lambda frame: frame.drop(columns=column))
    for script, tiny in (("main.py", TINY), ("main_transfer.py", TINY), ("generate.py", [])):
        flags = ["--data-dir", data, *tiny, "--results-dir", tmp_path / "out", "--target"]
        run(script, *flags, target)
        assert column in run(script, *flags, other, status=2).err
    assert not list((tmp_path / "out").glob(f"*_{other}_*"))


def test_a_new_target_is_one_line(small_data, tmp_path, monkeypatch):
    """And what that does not give, rates and penalties, is fit to learn it."""
    column, elements = "V0 (A^3/atom)", ["Fe", "Ni", "Co", "Cr", "Mn"]
    monkeypatch.setitem(common.TARGETS, "V0", common.Target(column, "Å^3/atom", "volume"))
    formulas = pd.read_csv(small_data / "Database.csv").structures.str.split("_").str[0]
    volumes = {column: 10 + 9 * common.mole_fractions(formulas, elements)[:, 3] + 0.001 * np.arange(44)}
    data = with_targets(small_data, tmp_path / "data", lambda frame: frame.assign(**volumes))
    flags = ["--data-dir", data, "--results-dir", tmp_path, "--target", "V0"]
    fits = re.findall(r"fit R2 (\S+) .* RMSE (\S+) Å\^3/atom", run("generate.py", *flags).out)
    assert len(fits) == 2 and all(float(r2) > 0.99 and float(rmse) < 0.5 for r2, rmse in fits)
    for script, name, n in (("main.py", "scratch", "150"), ("main_transfer.py", "tl", "3")):
        more = [*TINY, "--epochs", n, "--patience", n, "--predict", "FeNi"]
        assert "Å^3/atom" in run(script, *flags, *more).out
        found = pd.read_csv(tmp_path / f"{name}_V0_4+5_100_reference_predictions.csv")
        np.testing.assert_array_equal(found.true.sort_values(), volumes[column][np.argsort(volumes[column])])
        if name == "scratch":
            assert ((found["mean"] - found.true) ** 2).mean() < 0.2 * found.true.var()


def test_windows_line_ends_and_byte_order_marks(small_data, tmp_path):
    data, found = shutil.copytree(small_data, tmp_path / "data"), []
    for path in data.rglob("*"):
        if path.is_file():
            mark = b"\xef\xbb\xbf" if path.suffix == ".csv" else b""
            path.write_bytes(mark + path.read_bytes().replace(b"\n", b"\r\n"))
    for folder, out in ((data, tmp_path / "windows"), (small_data, tmp_path / "plain")):
        run("main_transfer.py", "--data-dir", folder, "--results-dir", out, *TINY)
        found.append((out / "tl_Ef_4+5_100_reference_predictions.csv").read_bytes())
    assert found[0] == found[1]
    run("structure_stat.py", "--data-dir", data)
    plain = (small_data / "fcc_train.csv").read_bytes()
    assert (data / "fcc_train.csv").read_bytes() == plain and b"\r" not in plain


def test_ids_and_endings(small_data, tmp_path):
    """Structures named by an id, the formula in their POSCAR or in a column, files that end with .vasp."""
    data, plain = tmp_path / "data", pd.read_csv(small_data / "Database.csv")
    (data / "POSCARS").mkdir(parents=True)
    ids = [f"{i:04}" if i % 2 else f"S{i:03}" for i in range(len(plain))]  # no numbers, no sulphur
    for name, old in zip(ids, plain.structures):
        shutil.copy(small_data / "POSCARS" / old, data / "POSCARS" / f"{name}.vasp")
    formulas = plain.structures.str.split("_").str[0]
    for columns in ({}, {"formula": formulas}):
        plain.assign(structures=ids, **columns).to_csv(data / "Database.csv", index=False)
        run("structure_stat.py", "--data-dir", data)
        for phase in common.PHASES:
            tables = [pd.read_csv(folder / f"{phase}_train.csv").iloc[:, 1:] for folder in (small_data, data)]
            pd.testing.assert_frame_equal(*tables)
    run("main.py", "--data-dir", data, "--results-dir", tmp_path, *TINY)
    (data / "POSCARS/S000.vasp").write_text("no POSCAR")
    plain.assign(structures=ids).to_csv(data / "Database.csv", index=False)
    assert "S000" in run("structure_stat.py", "--data-dir", data, status=2).err


def test_a_table_of_alloys_alone(small_data, tmp_path):
    """Without POSCARs the methods that need no clusters train, and the others say which these are."""
    (tmp_path / "data").mkdir()
    shutil.copy(small_data / "Database.csv", tmp_path / "data")
    flags = ["--data-dir", tmp_path / "data", "--results-dir", tmp_path, *TINY]
    found = run("main.py", *flags).out
    plain = run("main.py", "--data-dir", small_data, "--results-dir", tmp_path / "with", *TINY).out
    assert "no folder" in found and found.split("Train:")[1] == plain.split("Train:")[1].replace("with/", "")
    assert "Scratch" in run("main_transfer.py", *flags, status=2).err
    assert "Scratch" in run("generate.py", *flags[:4], status=2).err
    assert "a folder with a POSCAR for each" in run("structure_stat.py", *flags[:2], status=2).err
    checked = run("check.py", *flags[:2]).out
    assert "no folder" in checked and "nothing disagrees" in checked


def test_a_table_of_many_elements_alone(small_data, tmp_path):
    """That there are no clusters is said first: of so many elements there would be too many samples."""
    frame = pd.read_csv(small_data / "Database.csv", index_col=0)
    more = ["Al", "Co", "Cr", "Cu", "Hf", "Mo", "Nb", "Ta", "Ti", "V", "W", "Zr"]
    names = [f"{one}{other}FeNi_fcc" for one, other in combinations(more, 2)]
    frame = frame.iloc[np.arange(len(names)) % len(frame)].assign(structures=names, phase="fcc")
    (tmp_path / "data").mkdir()
    frame.to_csv(tmp_path / "data/Database.csv")
    flags = ["--data-dir", tmp_path / "data", "--results-dir", tmp_path]
    assert "no POSCARS" in run("generate.py", *flags, status=2).err
    assert "no POSCARS" in run("main_transfer.py", *flags, *TINY, status=2).err
    assert "Test: R2" in run("main.py", *flags, *TINY).out


def test_all_the_data(small_data, tmp_path):
    """Every row trains, the epoch is the mean of those that the parts of a cross-validation chose."""
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, "--splits", "all", "--seeds", "0-1", *TINY]
    assert "no test set" in run("main.py", *flags, status=2).err
    flags += ["--select-by", "validation", "--predict", "FeNiCoCr"]
    for script, name in (("main.py", "scratch"), ("main_transfer.py", "tl")):
        assert "Test" not in run(script, *flags).out
        predictions = pd.read_csv(tmp_path / f"{name}_Ef_4+5_100_validation_all_predictions.csv")
        assert (
            len(predictions) == 44 and set(predictions.set) == {"train"} and set(predictions.split) == {"all"}
        )
    data = common.load_data(small_data, small_data, "Ef")
    split = common.split_rows(data.table, "4+5", 100, "all")
    calls = []

    def fit(train, watch, epochs):
        calls.append((train, watch, epochs))
        return SimpleNamespace(epochs=np.arange(2 * len(train)) if watch else epochs)

    kept = common.fit_selected(fit, data.table, [split], "validation", 9, 0.2, False).epochs
    (parts, held, _), (whole, watch, _) = calls
    assert kept.tolist() == [4, 5] and watch is None and sorted(whole[0]) == list(range(44))
    many = np.flatnonzero(data.table.n_components >= 4)
    assert sorted(np.concatenate(held)) == many.tolist() and len(held) == 5
    for rest, out in zip(parts, held):
        assert sorted([*rest, *out]) == list(range(44))
