"""Bad input ends with one line on standard error and status 2, and leaves no file behind."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT, TINY, run

SCRIPTS = ["structure_stat.py", "generate.py", "main.py", "main_transfer.py"]


@pytest.fixture
def data(small_data, tmp_path):
    """A copy of the small data, to break."""
    return shutil.copytree(small_data, tmp_path / "data")


def refused(script, *flags):
    """The one line that a script ends with."""
    result = run(script, *flags, status=2)
    lines = [line for line in result.err.replace("\r", "\n").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("structures:")]  # progress bar
    assert len(lines) == 1 and "Traceback" not in result.err, result.err
    return lines[0]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_poscar(data, name, change):
    path = data / "POSCARS" / name
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")


def names(data, n=2):
    return list(pd.read_csv(data / "Database.csv").structures[:n])


@pytest.mark.parametrize("script", SCRIPTS)
class TestEveryScript:
    def test_unknown_flag(self, script):
        line = refused(script, "--no-such-flag", "1")
        assert "--no-such-flag" in line and "--data-dir" in line

    def test_missing_folder(self, script, tmp_path):
        assert str(tmp_path / "nowhere") in refused(script, "--data-dir", tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()

    def test_missing_column(self, script, data):
        frame = pd.read_csv(data / "Database.csv").drop(columns=["phase", "Ms (mub/atom)"])
        frame.to_csv(data / "Database.csv")
        line = refused(script, "--data-dir", data)
        assert "Database.csv" in line and "'phase'" in line and "'Ms (mub/atom)'" in line

    def test_targets_that_are_no_numbers(self, script, data):
        frame = pd.read_csv(data / "Database.csv", dtype=str)
        frame.loc[0, "Eform (eV/atom)"], frame.loc[5, "Eform (eV/atom)"] = "", "n/a?"
        frame.to_csv(data / "Database.csv")
        line = refused(script, "--data-dir", data)
        assert "'Eform (eV/atom)'" in line and "line 2" in line and "line 7" in line

    def test_duplicate_structure(self, script, data):
        frame = pd.read_csv(data / "Database.csv")
        pd.concat([frame, frame.iloc[[3]]]).to_csv(data / "Database.csv")
        assert frame.structures[3] in refused(script, "--data-dir", data)

    @pytest.mark.parametrize("text", ["", "structures,phase\n", "\xff\xfe\x00"])
    def test_no_csv(self, script, data, text):
        (data / "Database.csv").write_bytes(text.encode("latin-1"))
        assert "Database.csv" in refused(script, "--data-dir", data)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--target", "E"], "Ef, Ms"),
        (["--method", "tl"], "scratch, scratch_prime"),
        (["--percent", "101"], "0 to 100"),
        (["--percent", "many"], "0 to 100"),
        (["--seeds", "3-1"], "0-7"),
        (["--seeds", ""], "0-7"),
        (["--epochs", "0"], "2 or more"),
        (["--learning-rate", "nan"], "None or a number"),
        (["--select-by", "test"], "reference, validation"),
    ],
)
def test_value_out_of_range(flags, expected):
    line = refused("main.py", *flags)
    assert flags[0] in line and expected in line


def test_constant_out_of_range(tmp_path):
    """An edit of a script's constants is checked as its flags are."""
    changed = (ROOT / "main.py").read_text("utf-8").replace('TARGET = "Ef"', 'TARGET = "E"')
    (tmp_path / "main.py").write_text(changed, "utf-8")
    command = [sys.executable, tmp_path / "main.py"]
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 2 and "constant TARGET: expected one of Ef, Ms" in result.stderr
    assert result.stdout == ""


def test_missing_poscars_are_listed_together(data):
    missing = names(data, 3)
    for name in missing:
        (data / "POSCARS" / name).unlink()
    before = files(data)
    line = refused("structure_stat.py", "--data-dir", data)
    assert all(name in line for name in missing)
    assert files(data) == before


def no_number(lines):
    lines[9] = "0.1 abc 0.2"


def nan(lines):
    lines[9] = "0.1 nan 0.2"


def two_on_one_site(lines):
    lines[9] = lines[8]


def on_one_site_by_periodicity(lines):
    x, *rest = lines[8].split()
    lines[9] = " ".join([str(float(x) + 1), *rest])


def cut_short(lines):
    del lines[-3:]


def empty(lines):
    lines.clear()


def foreign(lines):
    lines[5] = lines[5].replace(lines[5].split()[0], "Al", 1)


def mn_with_pd(lines):
    lines[5] = " ".join(["Mn", "Pd", *lines[5].split()[2:]])


def other_composition(lines):
    counts = lines[6].split()
    lines[6] = " ".join([str(int(counts[0]) - 1), str(int(counts[1]) + 1), *counts[2:]])


@pytest.mark.parametrize(
    "change",
    [
        no_number, nan, two_on_one_site, on_one_site_by_periodicity, cut_short, empty, foreign, mn_with_pd,
        other_composition,
    ],
)  # fmt: skip
def test_bad_poscars(data, change):
    """Two structures have the fault; both are named, and the tables stay as they were."""
    changed = names(data)
    for name in changed:
        change_poscar(data, name, change)
    before = files(data)
    line = refused("structure_stat.py", "--data-dir", data)
    assert all(name in line for name in changed)
    assert files(data) == before


def test_pair_that_the_columns_do_not_cover(data):
    frame = pd.read_csv(data / "Database.csv")
    frame.loc[0, "structures"] = "Mn3Pd_sqsfcc"
    frame.to_csv(data / "Database.csv")
    assert "Mn3Pd_sqsfcc" in refused("structure_stat.py", "--data-dir", data)


@pytest.mark.parametrize("script", SCRIPTS[1:])
class TestTables:
    def test_missing(self, script, data, tmp_path):
        (data / "bcc_train.csv").unlink()
        line = refused(script, "--data-dir", data, "--results-dir", tmp_path / "results")
        assert "bcc_train.csv" in line and "structure_stat.py" in line

    def test_other_database(self, script, data, tmp_path):
        frame = pd.read_csv(data / "Database.csv")
        frame.loc[0, "Eform (eV/atom)"] += 0.001
        frame.to_csv(data / "Database.csv")
        line = refused(script, "--data-dir", data, "--results-dir", tmp_path / "results")
        assert "fcc_train.csv" in line and "structure_stat.py" in line

    def test_missing_column(self, script, data, tmp_path):
        pd.read_csv(data / "fcc_train.csv").drop(columns="pair Fe-Ni").to_csv(data / "fcc_train.csv")
        assert "pair Fe-Ni" in refused(script, "--data-dir", data, "--results-dir", tmp_path / "results")


def test_results_folder_that_is_a_file(data, tmp_path):
    (tmp_path / "results").write_text("mine")
    assert "results" in refused("main.py", "--data-dir", data, "--results-dir", tmp_path / "results")
    assert (tmp_path / "results").read_text() == "mine"


def test_no_training_alloys_left(data, tmp_path):
    flags = ["--method", "scratch_prime", "--percent", "0", "--results-dir", tmp_path, *TINY]
    assert "PERCENT" in refused("main.py", "--data-dir", data, *flags)


def test_windows_line_ends_and_byte_order_mark(data, small_data):
    for path in [data / "Database.csv", *(data / "POSCARS").iterdir()]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    database = data / "Database.csv"
    database.write_bytes(b"\xef\xbb\xbf" + database.read_bytes())
    run("structure_stat.py", "--data-dir", data)
    assert (data / "fcc_train.csv").read_bytes() == (small_data / "fcc_train.csv").read_bytes()
