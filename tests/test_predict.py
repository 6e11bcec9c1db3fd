"""Predictions for alloys of one's own: what may be handed in, what is refused, what the table says."""

import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, files, ideal, run
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp.inputs import Poscar

import common
from beyond import predict as script

RUN = "scratch_Ef_4+5_100_reference"


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory):
    """The folder of a run of two seeds."""
    folder = tmp_path_factory.mktemp("results")
    run("main.py", "--data-dir", small_data, "--results-dir", folder, "--seeds", "0-1", *TINY)
    return folder / RUN


def predict(checkpoint, out, *alloys, status=0):
    """What a run prints; no data is there."""
    flags = ["--checkpoint", checkpoint, "--results-dir", out, "--data-dir", out / "none"]
    return run("beyond/predict.py", *flags, "--predict", *alloys, status=status)


def read(out, n="", name=RUN):
    return pd.read_csv(out / f"predicted_{name}{n}" / "predictions.csv", keep_default_na=False)


def poscar(path, structure):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Poscar(structure).get_str())
    return path


L12, B2 = ideal("fcc", ["Fe", "Ni", "Ni", "Ni"], 2), ideal("bcc", ["Fe", "Ni"], 3, a=2.9)


def test_the_database_gets_what_the_run_wrote(small_data, trained, tmp_path):
    """Row by row, in its order, each with its arrangement; a checkpoint is a run's folder or its file."""
    for out, checkpoint in ((tmp_path / "a", trained), (tmp_path / "b", trained / "model.pt")):
        predict(checkpoint, out, small_data / "Database.csv")
    found, names = read(tmp_path / "a"), pd.read_csv(small_data / "Database.csv").structures
    assert found.equals(read(tmp_path / "b")) and found.structure.tolist() == names.tolist()
    written = pd.read_csv(trained / "predictions.csv").set_index("structure").loc[names]
    np.testing.assert_allclose(found[["mean", "std"]], written[["mean", "std"]], atol=1e-9)
    order = pd.read_csv(small_data / "order_lattice.csv").set_index("structure").loc[names]
    alphas = [column for column in found if column.startswith("alpha")]
    assert len(alphas) == 30  # 15 pairs of five elements, two shells
    np.testing.assert_allclose(found[alphas].replace("", np.nan).astype(float), order[alphas], atol=1e-7)
    assert [*found][-3:] == ["Unnamed: 0", "Eform (eV/atom)", "Ms (mub/atom)"] and found.unit[0] == "eV/atom"


FORMULAS = ["FeNi3", "Fe25Ni75", "Fe25 Ni75", "Ni0.75Fe.25", "(Fe0.25Ni0.75)2"]
TABLES = {  # one alloy, FeNi3 in fcc, in all the ways it can be said
    "blanks, capitals": " Composition , PHASE ,note\n Fe25 Ni75 , FCC ,mine\n\n",
    "a structure type": "Fe,Ni,Structure,note\n25,75,FCC,mine\n",
    "Excel": "\ufeffFe;Ni;Co;Lattice;note\r\n0,25;0,75;;fcc;mine\r\n",
    "at%": "Fe (at%),Ni (at.%),phase,T (K),note\n25.1,75.3,fcc,300,mine\n",
    "a name": "structures,Fe,note\nFeNi3_sqsfcc,7,mine\n",
    "a formula beside": "structures,formula,note\nS7_fcc,Fe25Ni75,mine\n",
    "a blank formula": "formula,structures,note\n,FeNi3_sqsfcc,mine\n",
    "unknown columns": "Fe,Ni,Al,mean,No,outside,phase,note\n25,75,9,8,7,6,fcc,mine\n",
}


def test_one_alloy_in_all_the_ways_it_can_be_said(trained, tmp_path):
    predict(trained, tmp_path, *FORMULAS)
    found = read(tmp_path)
    plain = found["mean"][0]
    assert found.phase.tolist() == ["fcc", "bcc"] * len(FORMULAS)
    np.testing.assert_allclose(found["mean"][::2], plain, rtol=1e-6)
    for case, text in TABLES.items():
        (tmp_path / "my alloys.CSV").write_text(text, encoding="utf-8", newline="")
        printed = predict(trained, tmp_path / case, tmp_path / "my alloys.CSV").out
        found = read(tmp_path / case)
        assert found.phase.tolist() == ["fcc"] and found["mean"][0] == pytest.approx(plain, rel=1e-6), case
        assert [*found][-1] == "note" and found.note[0] == "mine"
        assert ("read from" in printed) == (case in ("a name", "a formula beside", "a blank formula"))
    # Of the last: other columns are carried, and the model's own stand before them.
    assert found["mean (given)"][0] == 8 and found.Al[0] == 9 and found["outside (given)"][0] == 6


REFUSED = [
    (["FCC"], "'FCC' is no formula"), (["S001"], "no file of that name: 'S001'"), ([""], "'' is no formula"),
    (["Fe50", "Mn30", "Co10", "Cr10"], "into quotes, as 'Fe50 Mn30 Co10 Cr10'"), ([], "found none"),
    (["Co25Cr25(FeNi)50"], "parentheses"), (["FeD"], "'FeD'"), (["no.csv"], "no.csv"), (["Fe0"], "Fe0"),
    (["FeNi", "Xy2"], "Xy2"), ("formula\n", "found none"), ("formula\nFeNi,1\n", "fields"),
    ("name\nFeNi\n", "or columns Fe, Ni, Co, Cr, Mn; there are name"), ("Fe (wt%)\n1\n", "are Fe (wt%)"),
    ("formula,phase\nFeNi,fcc\nFeNi,hcp\n", "line 3: expected the lattice fcc or bcc"),
    ("formula,phase\nFeNi,fcc\nFeNi,FCC+BCC\n", "found 'fcc+bcc'"), ("formula\nFeNi\n\n-\n", "line 4: '-'"),
    ("Fe,Ni,phase\n50,50,fcc\n-50,150,fcc\n", "line 3: expected a sum of 100"), ("Fe,Ni\n50,x\n", "Ni x"),
    ("Fe,Ni,Al,V (at%),x\n40,40,10,10,1\n", "not read: Al, V (at%)"), ("Fe,Ni\n1,3\n", "ratios go into"),
    ("Fe,Ni\n50,50.6\n", "Fe 50, Ni 50.6"), ("Fe,Ni\n0.5,0.50503\n", "Ni 0.50503"), ("Fe,Ni\ninf,1\n", "inf"),
    ("Fe,Ni,Fe\n50,50,50\n", "two columns of Fe"), ("Fe,Ni,Fe (at%)\n50,50,50\n", "two columns of Fe"),
    ("formula\nFeNi\nCo25(FeNi)50\n", "line 3: 'Co25(FeNi)50'"), (b"formula\nM\xfcller\n", "UTF-8"),
]  # fmt: skip


def test_lattices_and_folders_of_runs(trained, tmp_path):
    """Of a column, in any case; else the last word of a name; where there is none, each that there is.

    The same again in its place, another alloy or another file of that name in the next folder.
    """
    table, rows = tmp_path / "a.csv", "FeNi_sqsbcc, FCC ,1\nFeNi_bcc,,2\nFeNi_fcc_2,,3\n"
    for text in (f"structures,Phase,x\n{rows}", "formula\nFeCo\n", f"structures,Phase,x\n{rows}"):
        table.write_text(text)
        predict(trained, tmp_path / "out", table)
    assert len([*(tmp_path / "out").iterdir()]) == 2
    found = [read(tmp_path / "out", n) for n in ("", "_2")]
    assert found[0].phase.tolist() == ["fcc", "bcc", "fcc", "bcc"] and found[0].x.tolist() == [1, 2, 3, 3]
    assert found[1].formula.tolist() == ["FeCo"] * 2


@pytest.mark.parametrize(("alloys", "expected"), REFUSED)
def test_what_is_refused_in_one_line(trained, tmp_path, alloys, expected):
    if not isinstance(alloys, list):
        (tmp_path / "alloys.csv").write_bytes(alloys if isinstance(alloys, bytes) else alloys.encode())
        alloys = [tmp_path / "alloys.csv"]
    error = predict(trained, tmp_path, *alloys, status=2).err
    assert len(error.splitlines()) == 1 and expected in error
    assert not list(tmp_path.glob("predicted*"))


def test_folders_are_walked(trained, tmp_path, monkeypatch):
    """CONTCARs of calculations, else what is a POSCAR by its ending; rows are called by their paths."""
    cells, odd = tmp_path / "my cells", tmp_path / os.fsdecode(b"Mu\xfcller_fcc")
    poscars = [cells / name for name in ("calc1/CONTCAR", "calc2_bcc/POSCAR", "flat/c.d_sqsBCC", "flat/e0.5")]
    for path in (*poscars, odd):
        poscar(path, B2 if "bcc" in path.as_posix().lower() else L12)
    others = ["calc1/OUTCAR", "calc1/POSCAR", "calc2_bcc/CONTCAR", "flat/notes.txt"]
    for name in [*others, ".git/x", "flat/.x"]:
        (cells / name).parent.mkdir(exist_ok=True)
        (cells / name).touch()
    printed = predict(trained, tmp_path, cells, odd, "FeNi").out
    found = read(tmp_path)
    assert found.structure.tolist() == [*map(str, poscars), f"{tmp_path}/Mu\ufffdller_fcc", "", ""]
    assert found.phase.tolist() == ["fcc", "bcc", "bcc", "fcc", "fcc", "fcc", "bcc"]
    order = pd.to_numeric(found["alpha1 Fe-Ni"]).tolist()
    assert found.formula[0] == "Fe8Ni24" and order[:3] == pytest.approx([-1 / 3, -1, -1])
    assert np.isnan(order[5]) and f"names: {', '.join(str(cells / name) for name in others)}\n" in printed
    assert f"atoms: {poscars[0]} (fcc), {poscars[3]} (fcc)\n" in printed
    monkeypatch.chdir(poscar(tmp_path / "FeNi" / "x_bcc", B2).parent.parent)
    for n, word in (("_2", "FeNi"), ("_3", "FeNi/")):  # what is called like a formula is one, but for the /
        predict(trained, tmp_path, word)
        assert ("structure" in read(tmp_path, n)) == (word == "FeNi/")


def test_structures_that_are_no_whole_ones(trained, tmp_path):
    """A vacancy is a remark; what is no POSCAR or on no lattice, and a folder of neither, is refused.

    Stretched into fcc (Bain) atoms do not tell their bcc cell, whatever cell is asked for beside it.
    """
    predict(trained, tmp_path, poscar(tmp_path / "vacancy_bcc", B2.copy().remove_sites([0])))
    assert "arrangement not read" in read(tmp_path)["outside"][0] and read(tmp_path)["mean"][0] != ""
    (tmp_path / "a.cif").write_text("data_x\n_cell_length_a 3\n")
    (tmp_path / "empty").mkdir()
    cubic = Structure(Lattice.cubic(2.5), ["Fe"], [[0, 0, 0]])
    on_one = Structure(Lattice.cubic(4), ["Fe", "Ni"], [[0, 0, 0], [0.01, 0, 0]])
    for path, expected in (
        (poscar(tmp_path / "cubic", cubic), "cubic: expected the lattice"), (tmp_path / "a.cif", "CIF"),
        (poscar(tmp_path / "close", on_one), "close: two atoms"), (tmp_path / "empty", "expected POSCARs"),
        (poscar(tmp_path / "a_hcp", L12), "a_hcp: expected the lattice"),
    ):  # fmt: skip
        error = predict(trained, tmp_path, path, status=2).err
        assert len(error.splitlines()) == 1 and expected in error
    cell = ideal("bcc", ["Fe", "Ni"], (3, 2, 2), a=2.9)
    gone = Structure(cell.lattice.matrix @ np.diag([1, 1, 2**0.5]), cell.species, cell.frac_coords)
    paths = [poscar(tmp_path / "gone", gone), poscar(tmp_path / "whole", cell), poscar(tmp_path / "x", cell)]
    frame = pd.DataFrame({"formula": ["FeNi", "FeNi", "FeMn"], "phase": "bcc", "poscar": paths})
    system = common.System(("Fe", "Ni", "Mn"), (frozenset(("Fe", "Mn")),))
    clusters, remarks = script.arrangements(frame, system)
    assert clusters.isna().all(axis=1).tolist() == [True, False, True] and remarks[1] == []
    assert "no undistorted bcc cell" in remarks[0][0] and "excluded" in remarks[2][0]


def test_what_is_said_of_alloys_outside_of_the_training(trained, tmp_path):
    """Nothing blank has a name; of 60 rows 40 are printed."""
    printed = predict(trained, tmp_path, "FeNiCoCr", "Fe2Al", "Fe").out.split("written to")[1]
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "Fe2Al fcc element Al not seen" in lines and "alloys of 1 not seen" in printed
    assert not {"nan", "NaN", "None", "-0.0000"} & {*printed.split()} and read(tmp_path)["outside"][0] == ""
    many = predict(trained, tmp_path / "many", *(f"Fe{n}Ni" for n in range(1, 31))).out
    assert "and 20 more" in many and len(read(tmp_path / "many")) == 60
    saved = torch.load(trained / "model.pt", weights_only=True)
    lower, higher = saved["greatest"].clone(), saved["least"].clone()
    lower[0], higher[3] = 0.4, 0.2  # of Fe, of Cr
    for changes, row, expected in (
        ({"unseen": [["Ni", "Fe"]]}, 0, "Ni with Fe not seen"), ({"phases": ["bcc"]}, 0, "phase fcc not"),
        ({"n_components": [3, 5]}, 1, "alloys of 2 not seen"), ({"greatest": lower}, 1, "range: c(Fe)"),
        ({"least": higher}, 1, "range: c(Cr)"),
    ):  # fmt: skip
        torch.save(saved | changes, tmp_path / "other.pt")
        predict(tmp_path / "other.pt", tmp_path / expected, "FeNi", "FeCoCr")
        found = read(tmp_path / expected, name="other")
        assert expected in found["outside"][row] and expected not in found["outside"][3]
        assert (found["mean"][0] == "") == ("phases" in changes) and found["mean"][1] != ""


class Malicious:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_what_is_no_checkpoint_is_refused(trained, tmp_path, recwarn):
    """In one line, none of its code run; so is one of other elements' properties or of another network."""
    saved = torch.load(trained / "model.pt", weights_only=True)
    other = [[9.0, *saved["properties"][0][1:]], *saved["properties"][1:]]
    layers = saved["state"] | {"layers": saved["state"]["layers"].replace("ReLU", "Tanh")}
    for n, (content, expected) in enumerate([
        (b"", "wrote"), (b"no", "wrote"), (pickle.dumps(Malicious()), "wrote"),
        ({}, "wrote"), ([], "wrote"), (saved | {"target": "E"}, "wrote"), (saved | {"state": {}}, "wrote"),
        (saved | {"properties": other}, "other properties of Fe"), (saved | {"state": layers}, "Tanh"),
    ]):  # fmt: skip
        path = tmp_path / f"{n}.pt"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        result = predict(path, tmp_path / "out", "FeNi", status=2)
        assert len(result.err.splitlines()) == 1 and f"{n}.pt: " in result.err and expected in result.err
        assert "code from" not in result.out and not recwarn
    assert "No such file" in predict(tmp_path / "none", tmp_path, "FeNi", status=2).err
    assert not files(tmp_path / "out")
