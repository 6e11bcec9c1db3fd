"""Whatever the input holds: results, or one line and status 2, and no file changed."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, edited, files, run
from matplotlib.figure import Figure

import report
import settings

SCRIPTS = ["structure_stat.py", "generate.py", "main.py", "main_transfer.py"]
ENERGY, MOMENT = "Eform (eV/atom)", "Ms (mub/atom)"


@pytest.fixture
def data(small_data, tmp_path):
    """A copy of the small data, to break."""
    return shutil.copytree(small_data, tmp_path / "data")


def flags_of(script, data):
    """Flags with which a script reads data and writes beside it, quickly."""
    out = ["--table-dir", data] if script == SCRIPTS[0] else ["--results-dir", data.parent / "out"]
    return ["--data-dir", data, *out, *(TINY if script in SCRIPTS[2:] else [])]


def refused(script, data, *flags):
    """The one line that a script ends with, but for progress bars; all files stay as they are."""
    before = files(data.parent)
    printed = run(script, *flags_of(script, data), *flags, status=2).err
    lines = [line for line in re.split(r"[\r\n]+", printed) if line.strip()]
    lines = [line for line in lines if not re.match("structures:|training:", line)]
    assert len(lines) == 1 and files(data.parent) == before, printed
    return lines[0]


VALUES = """
--target E: Ef, Ms; --method tl: scratch, scratch_prime; --alloys 4: 4+5, Total; --select-by test: validation
--percent 101: 0 to 100; --percent -1: 0 to 100; --percent many: 0 to 100; --percent 1: per cent
--hold-out 1: 0.01 to 0.9; --refit no: True, False; --phase-input given: named, found; --jobs 0: 1 to
--seeds 3-1: 0-7; --seeds -1: 0-7; --seeds 0-1-2: 0-7; --splits 0-999999999: 0-7; --seeds: 0-7
--epochs 1: 2 to; --epochs 2.5: whole number; --epochs 100000000000000000000: whole number
--jobs -1: 1 to; --patience 0: 1 to; --batch-size 0: 1 to; --learning-rate nan: None or a number
--learning-rate 1e300: number; --device gpu: auto, cpu, cuda, mps; --elements Fe Xx: each once
--elements Fe Fe: each once; --excluded-pairs Mn: Mn-Pd; --excluded-pairs Fe-Ni: set EXCLUDED_PAIRS = None
--data-dir ~no-such/data: ~no-such; --method scratch_prime --percent 0: PERCENT 0
--predict FeNi: unrecognized: --predict
main_transfer.py --method da --augment 5000: AUGMENT 5000; main_transfer.py --augment 0: 1 to
main_transfer.py --source-learning-rate 1e30: number
main_transfer.py --source-epochs 0 --learning-rate 1e3: LEARNING_RATE
main_transfer.py --clusters: one or more of points; main_transfer.py --alpha best: tuned
main.py --results-dir FILE: Database.csv: ; generate.py --results-dir FILE: Database.csv:
structure_stat.py --table-dir FILE: Database.csv: ; structure_stat.py --data-dir nowhere: nowhere: expected
main_transfer.py --data-dir nowhere: nowhere: expected
"""


@pytest.mark.parametrize("case", re.split(r"; |\n", VALUES.strip()))
def test_values(small_data, tmp_path, case):
    (tmp_path / "Database.csv").write_text("a file")
    given, expected = case.split(": ", 1)
    words = given.replace("FILE", str(tmp_path / "Database.csv")).split()
    script = words.pop(0) if words[0].endswith(".py") else "main.py"
    before = files(tmp_path)
    tiny = TINY if script in SCRIPTS[2:] else []
    flags = ["--data-dir", small_data, "--table-dir", small_data, "--results-dir", tmp_path, *tiny]
    error = run(script, *flags, *words, status=2).err
    (line,) = [one for one in re.split(r"[\r\n]+", error) if one.strip() and not one.startswith("training:")]
    assert expected in line and line.startswith(f"{script}: ") and files(tmp_path) == before


def test_lists():
    assert settings.numbers("0,3,5-7 6") == [0, 3, 5, 6, 7]
    assert settings.numbers("200000-200001") == [200000, 200001]  # what is limited is how many
    with pytest.raises(ValueError, match="0-7"):
        settings.numbers("0-100000")
    assert settings.listed([*range(8)]) == "0, 1, 2, 3, 4, 5, 6, 7"
    assert settings.listed([*range(20)]) == "0, 1, 2, 3, 4, 5, 6, 7, and 12 more"


@pytest.mark.parametrize("line", ['TARGET = "E"', "SEEDS = []", "SEEDS = 0.5", "REFIT = 1", "EPOCHS = None"])
def test_constants_are_checked_as_flags_are(data, tmp_path, line):
    assert f"constant {line.split()[0]}: expected " in refused(edited(tmp_path, line), data)


def test_nothing_to_learn_from(data):
    """A constant target; none; sets that would be empty; what ALLOYS or PERCENT leaves no alloys for."""
    frame = pd.read_csv(data / "Database.csv", index_col=0)
    n_elements, bcc = frame.structures.str.split("_").str[0].str.count("[A-Z]"), frame.phase == "bcc"
    few, total = frame[~bcc | (frame.index == frame.index[-1])], ["--alloys", "Total"]
    for changed, flags, expected in (
        (frame.assign(**{MOMENT: 0.0}), ["--target", "Ms"], "Ms is 0 in all "),
        (frame.assign(**{MOMENT: np.nan}), ["--target", "Ms"], "no value in column"),
        (frame[n_elements < 4], [], "set ALLOYS = Total"),
        (few, total, "bcc: too few alloys to split"),
        (frame[~bcc | (n_elements >= 4)], ["--percent", "0"], "PERCENT 0 leaves no bcc training alloys"),
    ):
        changed.to_csv(data / "Database.csv")
        assert expected in refused("main.py", data, *flags)


NAME, FORMULA, PLAIN = "structures", "expected a formula", "the plain name of a file"
CELLS = [
    (ENERGY, 3, "?", "line 5"), (ENERGY, 3, "inf", "line 5"), (ENERGY, 3, "1e7", "line 5"),
    ("phase", 4, "bcc", "ends with its phase"), ("phase", slice(None), "hcp", "44 of phase 'hcp'"),
    (NAME, [3, 7], "FeNi_fcc", "line 5), FeNi_fcc (line 9"), (NAME, 0, "Mn3Pd_fcc", "no Mn with Pd"),
    (NAME, 0, "../POSCARS/FeNi_fcc", PLAIN), (NAME, 0, "", PLAIN), (NAME, 0, 300 * "e" + "_fcc", PLAIN),
    (NAME, 0, "Fe0Ni0_fcc", FORMULA), (NAME, 0, "XxFe_fcc", FORMULA), (NAME, 0, 150 * "(" + "_fcc", FORMULA),
    (NAME, 0, "FCC_fcc", FORMULA), ("formula", 0, "Fe FeNi", FORMULA),
    ("formula", 0, "Co25Cr25(FeNi)50", FORMULA),
]  # fmt: skip


def assert_refused(data, expected):
    for script in ("structure_stat.py", "main.py"):
        line = refused(script, data)
        assert "Database.csv" in line and expected in line


@pytest.mark.parametrize(("column", "row", "value", "expected"), CELLS)
def test_cells_of_the_database(data, column, row, value, expected):
    frame = pd.read_csv(data / "Database.csv", index_col=0).astype(object)
    frame.loc[row, column] = value
    frame.to_csv(data / "Database.csv")
    assert_refused(data, expected)


def test_a_name_that_its_poscar_contradicts(data):
    frame = pd.read_csv(data / "Database.csv", index_col=0)
    frame.loc[0, "structures"] = "FeNi_sqsfcc"
    shutil.copy(next((data / "POSCARS").glob("*Cr*fcc")), data / "POSCARS/FeNi_sqsfcc")
    frame.to_csv(data / "Database.csv")
    for script in SCRIPTS:
        line = refused(script, data)
        assert re.search("FeNi_sqsfcc: .* says FeNi, .*POSCAR .*Cr.* a column formula", line)


def test_labels_that_are_far_out_are_said(data):
    """And trained on: beyond ten robust deviations, or 5 eV/atom."""
    plain, flags = pd.read_csv(data / "Database.csv", index_col=0), flags_of("main.py", data)
    values, most = plain[ENERGY], plain[ENERGY].abs().max()
    deviation = 1.4826 * (values - values.median()).abs().median()
    far, near = (values.where(values.index != 2, values.median() - n * deviation) for n in (10.7, 9.3))
    large, small = (values * n / most for n in (5.1, 4.9))
    for changed, said in ((far, True), (near, False), (large, True), (small, False)):
        plain.assign(**{ENERGY: changed}).to_csv(data / "Database.csv")
        printed = run("main.py", *flags).out
        assert ("a wrong unit or digit? Ef of " in printed) == said and "Test: R2" in printed
        assert (f"{plain.structures[2]} ({changed[2]:g})\n" in printed) == (changed is far)
    assert "a wrong unit" not in run("main.py", *flags, "--target", "Ms").out


def test_lines_separators_and_blanks(data):
    """An empty line counts in messages and is no row; blanks around heads; semicolons, as Excel writes."""
    path, plain = data / "Database.csv", (data / "Database.csv").read_text()
    expected = run("main.py", *flags_of("main.py", data)).out.split("Train:")[1]
    head, rows = plain.split("\n", 1)
    for text in (
        plain.replace("\n", "\n\n", 3),
        plain.replace(".", "%").replace(",", ";").replace("%", ","),
        head.replace(",", " , ") + "\n" + rows.replace("fcc\n", " FCC \n"),
    ):
        path.write_text(text)
        assert run("main.py", *flags_of("main.py", data)).out.split("Train:")[1][:90] == expected[:90]
    shutil.rmtree(data.parent / "out")
    lines = plain.split("\n")
    path.write_text("\n".join([*lines[:2], "", lines[2].replace("fcc", "FCC", 1).replace("fcc", "bcc")]))
    assert "(line 4)" in refused("main.py", data)


CONTENTS = [
    (b"", "Database.csv: "), (b"structures,phase\n", "structures, phase"),
    (b"\xff\xfe\x00", "expected UTF-8"),
    ("structures;Temperatur (°C)\n".encode("cp1252"), "save it as 'CSV UTF-8'"),
    (b"a,b\n1,2,3\n", "as many fields as the header"), (b'a,"b\n1', "no CSV file"),
    (f"structures,phase,{ENERGY}\n".encode(), "at least one row"),
    (f"phase,{ENERGY},{MOMENT}\nfcc,1,1\n".encode(), f"phase, {ENERGY}, {MOMENT}"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), CONTENTS)
def test_what_is_no_table(data, content, expected):
    (data / "Database.csv").write_bytes(content)
    assert_refused(data, expected)


@pytest.mark.parametrize("script", ["generate.py", "main_transfer.py"])
def test_tables_of_other_data(script, data):
    path, pair, poscars = data / "fcc_train.csv", "pair Fe-Ni", data / "POSCARS"
    table = pd.read_csv(path)
    values = [{pair: "many"}, {pair: np.inf}, {ENERGY: table[ENERGY] + 0.001}]
    changes = [table.assign(**value) for value in values] + [table.replace(table.structure[3], "Fe_sqsfcc")]
    for changed in [*changes, table.drop(columns=pair), table[1:], table[::-1]]:
        changed.to_csv(path, index=False)
        line = refused(script, data)
        assert f"{path}: not of {data / 'Database.csv'} as it is now; run structure_stat.py" in line
    path.unlink()
    assert f"{path}: no such table; run structure_stat.py" in refused(script, data)
    table.to_csv(path, index=False)
    (poscars / table.structure[3]).write_text((poscars / table.structure[3]).read_text() + "\n")
    for _ in range(2):
        assert f"{path}: not of {poscars} as it is now; run structure_stat.py" in refused(script, data)
        path.with_suffix(".sha256").unlink(missing_ok=True)


FAULTS = [
    (9, lambda lines: "0.1 abc 0.2", "3 numbers"), (9, lambda lines: lines[8], "one site"),
    (slice(-3, None), lambda lines: [], "3 numbers"), (slice(None), lambda lines: [], "a scale"),
    (6, lambda lines: " ".join(lines[6].split()[::-1]), "holds "), (None, None, "none for"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "change", "expected"), FAULTS)
def test_poscars(data, where, change, expected):
    """All that have the fault are named, and the tables stay as they were."""
    frame = pd.read_csv(data / "Database.csv")
    frame.assign(formula=frame.structures.str.split("_").str[0]).to_csv(data / "Database.csv")
    paths = [data / "POSCARS" / name for name in frame.structures[:2]]
    for path in paths:
        lines = path.read_text().splitlines()
        path.unlink()
        if change:
            lines[where] = change(lines)
            path.write_text("\n".join(lines) + "\n")
    found = refused("structure_stat.py", data)
    assert all(path.name in found for path in paths) and expected in found and "Database.csv" in found


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device", "model.pt")])
def test_a_run_that_ends_early(data, monkeypatch, error):
    """Earlier results stay as they were, and nothing half-written is left."""

    def fails(*_):
        raise error

    run("main.py", *flags_of("main.py", data))
    before = files(data.parent)
    monkeypatch.setattr(report, "save_checkpoint", fails)
    status = 130 if isinstance(error, KeyboardInterrupt) else 2
    printed = run("main.py", *flags_of("main.py", data), status=status).err.strip()
    assert printed.count("\n") == 0 and ("interrupted" in printed or "model.pt: No space" in printed)
    assert files(data.parent) == before


def test_a_picture_that_fails_costs_nothing_else(data, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda *rest, **more: 1 / 0)
    assert "parity.png could not be drawn: division" in run("main.py", *flags_of("main.py", data)).out
    assert len(files(data.parent / "out")) == 5
