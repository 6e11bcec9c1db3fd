"""Small structures and data sets that the tests make, and where the study's data lies."""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp.inputs import Poscar

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT.parent / "shared" / "HEA_data"
OTHER = ROOT.parent / "shared" / "other_data"
TINY = ["--epochs", "3", "--patience", "2", "--device", "cpu"]

needs_study = pytest.mark.skipif(not STUDY.is_dir(), reason="the study's data is not at ../shared/HEA_data")
needs_other = pytest.mark.skipif(not OTHER.is_dir(), reason="other alloys are not at ../shared/other_data")


def ideal(phase, species, repeat, a=3.6):
    """A conventional cell repeated; species: a list as long as the sites, or a function of them."""
    basis = {
        "fcc": [(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)],
        "bcc": [(0, 0, 0), (0.5, 0.5, 0.5)],
    }[phase]
    structure = Structure(Lattice.cubic(a), [species[i % len(species)] for i in range(len(basis))], basis)
    return structure.make_supercell(repeat)


def random_alloy(phase, formula_counts, seed, repeat=2, displacement=0.05):
    """A repeated cell randomly filled and displaced by some hundredths of an angstrom."""
    generator = np.random.default_rng(seed)
    structure = ideal(phase, ["Fe"], repeat)
    species = [element for element, n in formula_counts.items() for _ in range(int(n))]
    assert len(species) == len(structure)
    generator.shuffle(species)
    shift = generator.normal(0, displacement, (len(structure), 3))
    return Structure(structure.lattice, species, structure.cart_coords + shift, coords_are_cartesian=True)


def write_data(folder, alloys):
    """alloys: {(formula, phase): structure} -> Database.csv and POSCARS/ with made-up targets."""
    (folder / "POSCARS").mkdir(parents=True)
    rows = []
    for (formula, phase), structure in alloys.items():
        name = f"{formula}_sqs{phase}"
        text = Poscar(structure.get_sorted_structure()).get_str(significant_figures=12)
        (folder / "POSCARS" / name).write_text(text)
        c = structure.composition.fractional_composition.get_el_amt_dict()
        energy = 0.1 * c.get("Cr", 0) - 0.2 * c.get("Fe", 0) * c.get("Ni", 0) + 0.02 * (phase == "bcc")
        moment = 2.2 * c.get("Fe", 0) + 0.6 * c.get("Ni", 0) + 1.6 * c.get("Co", 0)
        rows.append([name, energy, moment, phase])
    columns = ["structures", "Eform (eV/atom)", "Ms (mub/atom)", "phase"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "Database.csv")
    return folder


ELEMENTS = ["Fe", "Ni", "Co", "Cr", "Mn"]


def small_alloys():
    """Binaries to quinaries, 22 a phase, in 32-atom fcc and 16-atom bcc cells."""
    generator = np.random.default_rng(7)
    alloys = {}
    for phase, n_atoms in (("fcc", 32), ("bcc", 16)):
        seen = set()
        while len(seen) < 22:
            k = 2 + len(seen) // 4 if len(seen) < 8 else 4 + len(seen) % 2
            elements = sorted(generator.choice(5, k, replace=False))
            counts = 1 + generator.multinomial(n_atoms - k, np.ones(k) / k)
            formula = "".join(f"{ELEMENTS[e]}{n}" for e, n in zip(elements, counts))
            if formula not in seen:
                seen.add(formula)
                filling = {ELEMENTS[e]: n for e, n in zip(elements, counts)}
                alloys[formula, phase] = random_alloy(phase, filling, seed=len(seen))
    return alloys


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """A data folder of small made-up alloys, with its occupation tables; not to be written to."""
    folder = write_data(tmp_path_factory.mktemp("data") / "HEA_data", small_alloys())
    run("structure_stat.py", "--data-dir", folder, "--cells", "given", "lattice")
    return folder


@pytest.fixture(scope="session")
def study_tables(tmp_path_factory):
    """Occupation tables of the study's data, in a folder of the tests' own."""
    if not STUDY.is_dir():
        pytest.skip("the study's data is not at ../shared/HEA_data")
    folder = tmp_path_factory.mktemp("tables")
    run("structure_stat.py", "--data-dir", STUDY, "--table-dir", folder, "--cells", "given")
    return folder


def run(script, *flags, status=0):
    """Run a script as `python script flags` does, in this process; returns what it printed."""
    import common

    common.say_once.cache_clear()  # a process of its own would say it again
    before, out, err, code = sys.argv, io.StringIO(), io.StringIO(), 0
    sys.argv = [str(ROOT / script), *map(str, flags)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    assert code == status, err.getvalue()
    return SimpleNamespace(out=out.getvalue(), err=err.getvalue())


@pytest.fixture
def pictures(monkeypatch):
    """What pictures say, {file name: text}, of all that a test makes; nothing in one may be cut off.

    Those in the folder of a run are called run/file. All data counts as the study's, the longest to say.
    """
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    import common

    said, faults, save = {}, [], Figure.savefig
    monkeypatch.setattr(common, "data_name", lambda folder: "HEA_data (the study's, DFT)")

    def savefig(figure, path, **more):
        save(figure, path, **more)
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        if min(box.x0, box.y0) < -0.01 or box.x1 > width + 0.01 or box.y1 > height + 0.01:
            faults.append(f"{path}: cut off")
        folder = path.parent.name[1:].rsplit(".", 1)[0] + "/" if path.parent.name[0] == "." else ""
        texts = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
        said[folder + path.name] = "\n".join(filter(None, texts))

    monkeypatch.setattr(Figure, "savefig", savefig)
    yield said
    assert not faults  # raised where a picture is saved, it would cost that picture alone


def edited(folder, *lines):
    """A copy of main.py in folder, with some constants changed as a user would: "SEEDS = [0, 1]"."""
    text = (ROOT / "main.py").read_text("utf-8")
    for line in lines:
        text, n = re.subn(rf"^{line.split()[0]} = .*?(?=  #)", line, text, flags=re.MULTILINE)
        assert n == 1, line
    (folder / "main.py").write_text(text, "utf-8")
    return folder / "main.py"


def files(folder):
    """All files in a folder: {path relative to it: content}."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
