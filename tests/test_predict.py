"""Predictions for new alloys from a checkpoint."""

import pickle
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, TINY, files, ideal, run
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp.inputs import Poscar

sys.path.insert(0, str(ROOT / "studies"))
import map_ternary

import common
import prediction
import settings

RUN = "scratch_Ef_4+5_100_reference"


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory):
    """RESULTS_DIR of a short run of two seeds that predicts, too."""
    folder = tmp_path_factory.mktemp("results")
    flags = ["--data-dir", small_data, "--results-dir", folder, "--seeds", "0-1", *TINY]
    run("main.py", *flags, "--predict", "FeNiCoCr")
    return folder


def predict(trained, tmp_path, *alloys, status=0):
    """What a run prints that predicts from the checkpoint alone; the data is not there."""
    flags = [
        "--checkpoint",
        trained / f"{RUN}.pt",
        "--results-dir",
        tmp_path,
        "--data-dir",
        tmp_path / "none",
    ]
    return run("main.py", *flags, "--predict", *alloys, status=status)


def read(folder, n=""):
    return pd.read_csv(folder / f"{RUN}_predicted{n}.csv", keep_default_na=False)


def test_alloys_of_the_database_get_what_the_run_wrote(trained, tmp_path):
    written = pd.read_csv(trained / f"{RUN}_predictions.csv")
    written[["structure"]].to_csv(tmp_path / "alloys.csv", index=False, lineterminator="\r\n")
    predict(trained, tmp_path, tmp_path / "alloys.csv")
    np.testing.assert_allclose(read(tmp_path)[["mean", "std"]], written[["mean", "std"]], atol=1e-9)


def test_names(trained, tmp_path):
    """Other predictions are beside those of before, and the same replace them."""
    for alloys in ("FeNiCoCr", "FeNi", "FeNiCoCr"):
        predict(trained, tmp_path, alloys)
    assert len(list(tmp_path.iterdir())) == 2 and set(read(tmp_path, "_2").formula) == {"FeNi"}
    pd.testing.assert_frame_equal(read(tmp_path), read(trained))


def test_formulas_stand_for_both_phases_and_strange_ones_are_marked(trained, tmp_path):
    predict(trained, tmp_path, "FeNiCoCr", "Fe2Ni2Co2Cr2,FeNiAl", "Fe")
    found = read(tmp_path)
    assert found.phase.tolist() == ["fcc", "bcc"] * 4 and set(found.unit) == {"eV/atom"}
    assert found["mean"][0] == found["mean"][2] and found["outside"][0] == ""  # multiples are the same alloy
    assert "Al" in found["outside"][4] and found["mean"][4] == ""
    assert "alloys of 1" in found["outside"][6] and "c(Fe)" in found["outside"][6]


def test_pairs_that_no_training_alloy_holds_are_marked(trained, tmp_path):
    saved = torch.load(trained / f"{RUN}.pt", weights_only=True)
    assert saved["unseen"] == []  # all pairs of the five elements are in the small data
    torch.save(saved | {"unseen": [["Ni", "Fe"]]}, tmp_path / f"{RUN}.pt")
    predict(tmp_path, tmp_path / "out", "FeNiCoCr", "FeCo")
    found = read(tmp_path / "out")
    assert all("Ni with Fe not seen" in text for text in found["outside"][:2])
    assert not any("with" in text for text in found["outside"][2:]) and (found["mean"] != "").all()


def test_the_pairs_and_phases_of_the_training_alloys(small_data, tmp_path):
    data = common.load_data(small_data, small_data, "Ef")
    left = data.table.formula.str.contains("Co") & data.table.formula.str.contains("Mn")
    split = SimpleNamespace(train=np.flatnonzero(~left & (data.table.phase == "bcc")))
    chosen = SimpleNamespace(TARGET="Ef", METHOD="tl", PHASE_INPUT="named")
    outcome = SimpleNamespace(state={}, module="common")
    prediction.save_checkpoint(chosen, data, [split], outcome, tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    assert ["Co", "Mn"] in saved["unseen"] and saved["phases"] == ["bcc"]


def test_a_phase_that_was_not_trained_on(trained, tmp_path):
    saved = torch.load(trained / f"{RUN}.pt", weights_only=True)
    torch.save(saved | {"phases": ["bcc"]}, tmp_path / f"{RUN}.pt")
    predict(tmp_path, tmp_path / "out", "FeNi")
    found = read(tmp_path / "out")
    assert found["mean"][0] == "" != found["mean"][1] and "fcc not seen" in found["outside"][0]


def test_settings_that_are_not_the_checkpoints(trained, tmp_path):
    """Said as flags they are an error; the script's own constants are not asked."""
    flags = ["--checkpoint", trained / f"{RUN}.pt", "--predict", "FeNi", "--results-dir", tmp_path]
    for more, expected in ((["--target", "Ms"], "Ef"), (["--method", "scratch_prime"], "expected scratch")):
        error = run("main.py", *flags, *more, status=2).err
        assert expected in error and len(error.splitlines()) == 1
    run("main_transfer.py", *flags)


def test_one_network_states_no_spread(small_data, tmp_path):
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, *TINY]
    printed = run("main.py", *flags, "--predict", "FeNi").out
    assert (read(tmp_path)["std"] == "").all() and "0.0000" not in printed.split("written")[1]
    assert pd.read_csv(tmp_path / f"{RUN}_predictions.csv")["std"].isna().all()


CSV = {  # one alloy, FeNi3 in fcc, in all the ways it can be said
    "composition": "Composition,PHASE,note\nFe0.25 Ni0.75,FCC,mine\n",
    "elements": "note;Fe;Ni;Co;Phase\nmine;0,25;0,75;;Fcc\n",
    "amounts": "Fe,Ni,phase,note\n25,75,fcc,mine\n\n",
    "database": ",structures,Eform (eV/atom),note\n0,FeNi3_sqsfcc,0.1,mine\n",
    "mark": "\ufeffformula,phase,note\r\nFeNi3,fcc,mine\r\n",
}


def test_columns_of_elements_in_any_dress(trained, tmp_path):
    """FE and Fe (at%) are iron; a number is no nobelium; what the table says itself is renamed."""
    heads = ["Fe,Ni", "FE,ni", "Fe (at%),Ni [at.%]", "no,Fe %,Ni%", "std,outside,outside (given),Fe,Ni"]
    for n, head in enumerate(heads):
        (tmp_path / "alloys.csv").write_text(f"{head}\n{'3,' * (head.count(',') - 1)}1,3\n")
        predict(trained, tmp_path / str(n), tmp_path / "alloys.csv")
    found = [read(tmp_path / str(n)) for n in range(len(heads))]
    assert {one.formula[0] for one in found} == {"Fe1Ni3"} and len({one["mean"][0] for one in found}) == 1
    assert {"std (given)", "outside (given)", "outside (given) (given)"} < {*found[-1]}
    # a table that a run wrote can be asked for again
    predict(trained, tmp_path / "again", tmp_path / "4" / f"{RUN}_predicted.csv")
    assert read(tmp_path / "again")["mean"].tolist() == found[0]["mean"].tolist()


@pytest.mark.parametrize("case", CSV)
def test_csv_files(trained, tmp_path, case):
    """Names of columns and phases in any case, semicolons, a byte-order mark; other columns are carried."""
    (tmp_path / "alloys.CSV").write_text(CSV[case], encoding="utf-8", newline="")
    predict(trained, tmp_path, tmp_path / "alloys.CSV")
    predict(trained, tmp_path / "plain", "FeNi3")
    found, plain = read(tmp_path), read(tmp_path / "plain")
    assert (
        len(found) == 1
        and found.note[0] == "mine"
        and found["mean"][0] == pytest.approx(plain["mean"][0], abs=1e-6)
    )
    if case == "database":
        assert found.structures[0] == "FeNi3_sqsfcc" and "Eform (eV/atom)" in found


def test_the_database_itself(small_data, trained, tmp_path):
    """Each of its rows, in its order, with its arrangement; two arrangements of one alloy are two rows."""
    printed = predict(trained, tmp_path, small_data / "Database.csv").out
    found, database = read(tmp_path), pd.read_csv(small_data / "Database.csv")
    assert found.structures.tolist() == database.structures.tolist()
    order = pd.read_csv(small_data / "order_lattice.csv").set_index("structure").loc[database.structures]
    shared = [column for column in order if column.startswith("alpha") and column in found]
    numbers = found[shared].replace("", np.nan).astype(float)
    assert len(shared) == 30  # 15 pairs of five elements, two shells
    np.testing.assert_allclose(numbers, order[shared], atol=1e-7)  # these from nine decimals
    assert "sees no arrangement" in printed


def test_the_lattice_in_a_name(trained, tmp_path):
    """In capitals and after dots too, or else a cell that relaxed into fcc would be taken for fcc."""
    (folder := tmp_path / "cells").mkdir()
    text = Poscar(ideal("fcc", ["Fe", "Ni", "Ni", "Ni"], 2)).get_str()
    names = ["Fe0.25Ni0.75_sqsbcc", "a_BCC", "b_bcc.VASP", "c.d_sqsBCC.vasp", "e0.5", "notes.txt"]
    for name in names:
        (folder / name).write_text(text)
    printed = predict(trained, tmp_path, folder).out
    assert dict(zip(read(tmp_path).structure, read(tmp_path).phase)) == dict.fromkeys(names[:4], "bcc") | {
        "e0.5": "fcc"
    }
    assert "e0.5: no lattice in its name; taken for fcc" in printed and "endings: notes.txt" in printed
    lines = text.replace(" Fe\n", "\n").replace(" Ni\n", "\n").split("\n")
    (folder / "old_fcc").write_text("\n".join(lines[:5] + lines[6:]))
    error = predict(trained, tmp_path, folder / "old_fcc", status=2).err
    assert "Elements in POSCAR cannot be determined" in error and len(error.splitlines()) == 1


def test_the_arrangement_of_a_cell_is_its_own(tmp_path):
    """Stretched into fcc (Bain) its atoms do not tell its bcc cell, whatever cell is asked for beside it."""
    cell = ideal("bcc", ["Fe", "Ni"], (3, 2, 2), a=2.9)
    gone = Structure(cell.lattice.matrix @ np.diag([1, 1, 2**0.5]), cell.species, cell.frac_coords)
    for name, one in {"gone": gone, "whole": cell}.items():
        (tmp_path / name).write_text(Poscar(one).get_str())
    paths = [tmp_path / "gone", tmp_path / "whole"]
    frame = pd.DataFrame({"formula": "FeNi", "phase": "bcc", "poscar": paths})
    clusters, remarks = prediction.arrangements(frame, common.System(("Fe", "Ni"), ()))
    assert clusters.isna().all(axis=1).tolist() == [True, False]
    assert "no undistorted bcc cell" in remarks[0][0] and remarks[1] == []


def test_structures(trained, tmp_path):
    """A folder of POSCARs, the lattice by name or by its atoms; a vacancy, a broken one, simple cubic."""
    (folder := tmp_path / "cells").mkdir()
    b2 = ideal("bcc", ["Fe", "Ni"], 3, a=2.9)
    for name, cell in {"l12.vasp": ideal("fcc", ["Fe", "Ni", "Ni", "Ni"], 2), "B2": b2}.items():
        (folder / name).write_text(Poscar(cell).get_str())
    predict(trained, tmp_path, folder)
    found = read(tmp_path)
    assert found.structure.tolist() == ["B2", "l12.vasp"] and found.phase.tolist() == ["bcc", "fcc"]
    assert found["alpha1 Fe-Ni"].astype(float).tolist() == pytest.approx([-1, -1 / 3])
    predict(trained, tmp_path / "plain", "FeNi3")
    plain = read(tmp_path / "plain")["mean"][0]
    assert float(found["mean"][1]) == pytest.approx(plain, abs=1e-6)  # networks see no arrangement

    b2.remove_sites([0])
    (folder / "vacancy_bcc").write_text(Poscar(b2).get_str())
    predict(trained, tmp_path / "vacancy", folder / "vacancy_bcc")
    row = read(tmp_path / "vacancy").iloc[0]
    assert "arrangement not read" in row["outside"] and row["mean"] != ""
    (folder / "broken").write_text("no cell")
    assert "broken" in predict(trained, tmp_path, folder, status=2).err
    (folder / "cubic").write_text(Poscar(Structure(Lattice.cubic(2.5), ["Fe"], [[0, 0, 0]])).get_str())
    assert "its lattice" in predict(trained, tmp_path, folder / "cubic", status=2).err


SAID = {
    "method": "../escaped", "target": "E", "elements": ["Fe", "Ni", "Co", "Cr", "Xx"], "excluded": [["Fe"]],
    "unseen": [["Fe", "Al"]], "least": "low", "greatest": torch.zeros(3),
    "phases": ["hcp"], "phase_input": "guessed", "n_components": 5, "state": {},
    "properties": [[1.8, 1.3, 8]] * 5, "module": "os",
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_a_checkpoint_says_is_checked(trained, tmp_path, name):
    """Nothing is written, and no traceback."""
    saved = torch.load(trained / f"{RUN}.pt", weights_only=True)
    torch.save(saved | {name: SAID[name]}, tmp_path / "changed.pt")
    for script in ("main.py", "studies/map_ternary.py"):
        flags = ["--checkpoint", tmp_path / "changed.pt", "--results-dir", tmp_path / "in" / "out"]
        error = run(script, *flags, *(["--predict", "FeNi"] if script == "main.py" else []), status=2).err
        assert len(error.splitlines()) == 1 and "changed.pt: expected a checkpoint" in error
    assert [path.name for path in files(tmp_path)] == ["changed.pt"]


def test_a_checkpoint_of_one_phase_is_no_map(small_data, tmp_path):
    data = shutil.copytree(small_data, tmp_path / "data")
    frame = pd.read_csv(data / "Database.csv", index_col=0)
    frame[frame.phase == "bcc"].to_csv(data / "Database.csv")
    flags = ["--data-dir", data, "--results-dir", tmp_path / "out"]
    run("main_committee.py", *flags, "--networks", "2", "--source-epochs", "1", "--predict", "FeNi")
    name = "committee_Ef_4+5_100_fixed"
    checkpoint = ["--checkpoint", tmp_path / "out" / f"{name}.pt", "--results-dir", tmp_path / "map"]
    error = run("studies/map_ternary.py", *checkpoint, status=2).err
    assert len(error.splitlines()) == 1 and "seen bcc alone" in error and not (tmp_path / "map").exists()


def test_maps_of_two_checkpoints_of_one_name(trained, tmp_path):
    """Beside each other; that of the same checkpoint again in its place."""
    saved = torch.load(trained / f"{RUN}.pt", weights_only=True)
    (tmp_path / "other").mkdir()
    torch.save(saved | {"data": "other"}, tmp_path / "other" / f"{RUN}.pt")
    for folder in (trained, tmp_path / "other", trained):
        flags = ["--checkpoint", folder / f"{RUN}.pt", "--results-dir", tmp_path / "out"]
        run("studies/map_ternary.py", *flags)
    names = {path.name for path in files(tmp_path / "out")}
    assert names == {
        f"map_{RUN}_FeNi_CoCr_Mn{n}{end}" for n in ("", "_2") for end in (".png", "_settings.json")
    }


def test_maps(small_data, trained, tmp_path, pictures):
    """Phases and data are the checkpoint's; what it has not seen is hatched; a hull between elements."""
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, *TINY]
    run("main.py", *flags, "--phase-input", "found", "--target", "Ms")
    found = torch.load(tmp_path / "scratch_Ms_4+5_100_reference_found.pt", weights_only=True)
    torch.save(found | {"phases": ["fcc", "bcc", "hcp"]}, tmp_path / "found.pt")
    saved = torch.load(trained / f"{RUN}.pt", weights_only=True)
    everything = {"least": saved["least"] * 0 - 9, "greatest": saved["greatest"] + 99}
    torch.save(saved | everything | {"n_components": [1, 2, 3]}, tmp_path / "all.pt")
    printed = {}
    for name, more in (
        ("found", ["Fe", "Ni", "Cr"]),
        ("all", ["Fe", "Ni", "Cr"]),
        ("all", ["FeNi", "Co", "Cr"]),
    ):
        flags = ["--checkpoint", tmp_path / f"{name}.pt", "--results-dir", tmp_path, "--corners"]
        printed["_".join([name, *more])] = run("studies/map_ternary.py", *flags, *more).out
    said = {name.split(".")[-2]: text for name, text in pictures.items() if "parity" not in name}
    found, elements, formulas = said.values()
    assert "\nhcp\n" in found and "hcp" not in elements and "Scratch; data: this project's" in found
    assert "magnetisation (μB/atom)" in found and "phase as found" in found and "convex hull" not in found
    assert "bcc − fcc" in elements and "Scratch, mean of 2 networks; data: another set" in elements
    assert "distance to the convex hull" in elements and "meV/atom" in elements
    assert "outside of what was trained on" in found and "outside" not in elements
    found, elements, formulas = printed.values()
    assert "spread" not in found and "0% of the alloys" in elements
    assert "no convex hull" in formulas and "convex" not in found


def test_distance_to_the_convex_hull():
    """By hand: one alloy at -0.1 eV/atom, half Fe, half Ni; for pure elements no prediction counts."""
    shares, fractions = map_ternary.section(["Fe", "Ni", "Cr"], None, 0, ["Ni", "Fe", "Cr"])
    energies = np.where(shares.max(1) == 1, -5, 0.0)
    energies[(shares == [0.5, 0.5, 0]).all(1)] = -0.1
    found = map_ternary.above_hull(["Fe", "Ni", "Cr"], fractions, energies, ["Ni", "Fe", "Cr"])
    expected = 0.2 * np.minimum(shares[:, 0], shares[:, 1]) + energies
    expected[shares.max(1) == 1] = 0
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_many_alloys(trained, tmp_path, monkeypatch):
    """All are in the file, at most forty are printed, and the file is written before that can fail."""
    printed = predict(trained, tmp_path, *(f"Fe{n}Ni" for n in range(1, 61))).out
    assert printed.count("Ni") == 60 + 40 and "and 80 more" in printed  # the settings name all
    assert len(read(tmp_path)) == 120
    monkeypatch.delattr(pd.DataFrame, "to_string")
    with pytest.raises(AttributeError):
        predict(trained, tmp_path, "FeNi")
    assert len(read(tmp_path, "_2")) == 2


TABLES = [
    ("name\nFeNi\n", "'formula' or"), ("formula,phase\nFeNi,hcp\n", "line 2: expected fcc or bcc"),
    ("formula\n", "none"), ("structure\nFeNi\n", "fcc or bcc"), ('formula\n""\n', "none"),
    ("formula\nFeNi\n\n-\n", "line 4: expected a formula, such as FeNiCoCr; got '-'"),
    ("Fe,Ni\n1,1\n-1,2\n", "line 3: expected an amount of Fe"), ("Fe,Ni\n1,x\n", "amount of Ni"),
    ("formula\nFeNi,1\n", "more"), ("Fe,Ni,Fe\n1,1,1\n", "one column of Fe"),
    ("formula\nFeNi\nFe,1\n", "not a readable CSV"),
    ("Fe (wt%),Ni\n1,1\n", "Fe (at%)"), ("Fe,fe\n1,1\n", "one column of Fe"),
]  # fmt: skip
WORDS = [
    ("Xy2", "Xy2"), ("FeNi no.csv", "one CSV"), ("S001", "S001"), ("no.csv", "no.csv"), (",", "none"),
    ("Fe0", "Fe0"), ("FeNi)", "FeNi)"),
]  # fmt: skip


@pytest.mark.parametrize(("alloys", "expected"), TABLES + WORDS)
def test_bad_alloys(trained, tmp_path, alloys, expected):
    (tmp_path / "alloys.csv").write_text(alloys)
    error = predict(trained, tmp_path, tmp_path / "alloys.csv" if "\n" in alloys else alloys, status=2).err
    assert len(error.splitlines()) == 1 and expected in error


class Malicious:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps(Malicious()), pickle.dumps({})])
def test_what_is_no_checkpoint_is_refused_and_not_run(tmp_path, content):
    (tmp_path / f"{RUN}.pt").write_bytes(content)
    result = predict(tmp_path, tmp_path, "FeNi", status=2)
    assert "code from" not in result.out and len(result.err.splitlines()) == 1 and f"{RUN}.pt" in result.err


@pytest.mark.parametrize("seed", range(120))
def test_damaged_checkpoints(trained, tmp_path, seed):
    """A cut one is refused, and one changed in two bytes too, or it still predicts."""
    generator, content = np.random.default_rng(seed), bytearray((trained / f"{RUN}.pt").read_bytes())
    place = int(generator.integers(len(content) if seed % 2 else 3000))  # 3000: what describes the tensors
    content[place : place + 2 if seed % 4 else None] = generator.bytes(2) if seed % 4 else b""
    (tmp_path / "damaged.pt").write_bytes(content)
    try:
        prediction.load_checkpoint(tmp_path / "damaged.pt")
        assert seed % 4
    except settings.InputError as error:
        assert "damaged.pt" in str(error)
