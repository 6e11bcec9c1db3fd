"""Whatever the input holds, and wherever a run ends: results, or one line and status 2, and no file lost.

Hundreds of seeded random edits go through the functions that read files; only success or an InputError may
come of them, without a warning and in bounded time and memory.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY, edited, files, random_alloy, run
from pymatgen.io.vasp.inputs import Poscar

import common
import report
import settings
import structure_stat

TRAINING = ["main.py", "main_transfer.py"]
SCRIPTS = ["structure_stat.py", "generate.py", *TRAINING]
SYSTEM = common.System(("Fe", "Ni", "Co", "Cr", "Mn"), ())
ENERGY, MOMENT = "Eform (eV/atom)", "Ms (mub/atom)"


@pytest.fixture
def data(small_data, tmp_path):
    """A copy of the small data, to break."""
    return shutil.copytree(small_data, tmp_path / "data")


def flags_of(script, data):
    """Flags with which a script reads data and writes beside it, quickly."""
    out = ["--table-dir", data] if script == SCRIPTS[0] else ["--results-dir", data.parent / "out"]
    return ["--data-dir", data, *out, *(TINY if script in TRAINING else [])]


def refused(script, data, *flags, status=2):
    """The one line that a script ends with, but for progress bars; all files stay as they are."""
    before = files(data.parent)
    printed = run(script, *flags_of(script, data), *flags, status=status).err
    lines = [line for line in re.split(r"[\r\n]+", printed) if line.strip()]
    lines = [line for line in lines if not re.match("structures:|training:", line)]
    assert len(lines) == 1, printed
    assert files(data.parent) == before
    return lines[0]


# ==== settings ====================================================================================


@pytest.mark.parametrize("script", SCRIPTS)
def test_folders(script, data, tmp_path):
    assert str(tmp_path / "nowhere") in refused(script, data, "--data-dir", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").write_text("mine")
    flag = "--table-dir" if script == SCRIPTS[0] else "--results-dir"
    assert str(tmp_path / "file") in refused(script, data, flag, tmp_path / "file")


VALUES = """
--target E: Ef, Ms; --method tl: scratch, scratch_prime; --alloys 4: 4+5, Total; --select-by test: validation
--percent 101: 0 to 100; --percent many: 0 to 100; --hold-out 1: 0.01 to 0.9; --refit no: True, False
--seeds 3-1: 0-7; --seeds -1: 0-7; --seeds 0-1-2: 0-7; --splits 0-999999999: 0-7; --patience 0: 1 or more
--epochs 1: 2 or more; --epochs 2.5: whole number; --epochs 100000000000000000000: whole number
--batch-size 100000000000000000000: whole number; --learning-rate nan: None or a number
--learning-rate 1e300: number; --device gpu: auto, cpu, cuda, mps; --elements Fe Xx: each once
--elements Fe Fe: each once; --excluded-pairs Mn: Mn-Pd; --excluded-pairs Fe-Ni: no Fe with Ni
--data-dir ~no-such-user/data: ~no-such-user; --predict no.csv: no.csv; --checkpoint no.pt: with PREDICT
--method scratch_prime --percent 0: PERCENT 0; main_transfer.py --method da --augment 5000: AUGMENT 5000
main_transfer.py --source-learning-rate 1e3: LEARNING_RATE; main_transfer.py --learning-rate 1e3: LEARNING_RATE
"""


@pytest.mark.parametrize("case", re.split(r"; |\n", VALUES.strip()))
def test_values(data, case):
    given, expected = case.split(": ")
    words = given.split() if given[0] == "m" else ["main.py", *given.split()]
    assert expected in refused(words[0], data, *words[1:])


@pytest.mark.parametrize("line", ['TARGET = "E"', "SEEDS = []", "SEEDS = 0.5", "REFIT = 1", "EPOCHS = None"])
def test_constants_are_checked_as_flags_are(data, tmp_path, line):
    assert f"constant {line.split()[0]}: expected " in refused(edited(tmp_path, line), data)


# ==== Database.csv and the tables =================================================================

CELLS = [
    (3, ENERGY, "", "line 5"), (3, ENERGY, "n/a?", "line 5"), (3, ENERGY, "inf", "line 5"), (3, ENERGY, "-1e7", "line 5"),
    (4, "phase", "", "line 6"), (4, "phase", "bcc", "ends with its phase"), (slice(None), "phase", "hcp", "44 of phase"),
    ([3, 7], "structures", "FeNi_sqsfcc", "line 5), FeNi_sqsfcc (line 9"), (0, "structures", "Mn3Pd_sqsfcc", "no Mn with Pd"),
    (0, "structures", "../POSCARS/FeNi_sqsfcc", "plain name"), (0, "structures", 300 * "e" + "_sqsfcc", "plain name"),
    (0, "structures", "Fe0Ni0_sqsfcc", "with a formula"), (0, "structures", "XxFe_sqsfcc", "with a formula"),
    (0, "structures", 150 * "(" + "_sqsfcc", "with a formula"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "column", "value", "expected"), CELLS)
def test_cells_of_the_database(data, row, column, value, expected):
    frame = pd.read_csv(data / "Database.csv", index_col=0).astype(object)
    frame.loc[row, column] = value
    frame.to_csv(data / "Database.csv")
    for script in SCRIPTS:
        line = refused(script, data)
        assert "Database.csv" in line and expected in line


CONTENTS = [b"", b"structures,phase\n", b"\xff\xfe\x00", b"a,b\n1,2,3\n", b'a,"b\n1', b"a,b\n1,2\n"]
CONTENTS += [f"structures,phase,{ENERGY}\n".encode(), f"phase,{ENERGY},{MOMENT}\nfcc,1,1\n".encode()]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", ["Database.csv", "bcc_train.csv"])
def test_what_is_no_table(data, name, content):
    (data / name).write_bytes(content)
    for script in SCRIPTS[name != "Database.csv" :]:
        assert name in refused(script, data)


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_tables_of_other_data(script, data):
    path, pair = data / "fcc_train.csv", "pair Fe-Ni"
    table = pd.read_csv(path)
    many, other = table.assign(**{pair: "many"}), table.assign(**{ENERGY: table[ENERGY] + 0.001})
    renamed = table.replace(table.structure[3], "Fe_sqsfcc")
    for changed in (
        table.drop(columns=pair),
        many,
        other,
        renamed,
        table[1:],
        table[::-1],
        table.assign(**{pair: np.inf}),
    ):
        changed.to_csv(path, index=False)
        line = refused(script, data)
        assert "fcc_train.csv" in line and "structure_stat.py first" in line
    path.unlink()
    assert "structure_stat.py first" in refused(script, data)


# ==== POSCARs =====================================================================================


def moved(lines):
    """An atom from the first element to the second."""
    first, second, *rest = lines[6].split()
    return " ".join([str(int(first) - 1), str(int(second) + 1), *rest])


FAULTS = [
    (9, lambda lines: "0.1 abc 0.2", "no whole POSCAR"), (9, lambda lines: "0.1 nan 0.2", "no number"),
    (9, lambda lines: lines[8], "one site"), (9, lambda lines: "1" + lines[8].strip()[1:], "one site"),
    (slice(-3, None), lambda lines: [], "no whole POSCAR"), (slice(None), lambda lines: [], "no whole POSCAR"),
    (5, lambda lines: re.sub(r"\w+", "Al", lines[5], count=1), "holds Al"), (6, moved, "holds "),
    (6, lambda lines: "8 8 1999999999", "fewer lines than atoms"), (None, None, "none for"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "change", "expected"), FAULTS)
def test_poscars(data, where, change, expected, little_memory):
    """All that have the fault are named, and the tables stay as they were."""
    paths = [data / "POSCARS" / name for name in pd.read_csv(data / "Database.csv").structures[:2]]
    for path in paths:
        lines = path.read_text().splitlines()
        path.unlink()
        if change:
            lines[where] = change(lines)
            path.write_text("\n".join(lines) + "\n")
    found = refused("structure_stat.py", data)
    assert all(path.name in found for path in paths) and expected in found


@pytest.fixture
def little_memory():
    """Memory that runs away becomes an error here, not the end of the machine."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):  # macOS, or a machine that allows less
        resource.setrlimit(resource.RLIMIT_AS, (24 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def structure():
    return random_alloy("fcc", {"Fe": 8, "Ni": 8, "Co": 10, "Cr": 6}, seed=1).get_sorted_structure()


def as_text(structure, direct=True, **more):
    return Poscar(structure, **more).get_str(direct=direct, significant_figures=14)


def counted(path):
    """count_structures on one file: its row, or None with one fault; a warning is an error."""
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, faults = structure_stat.count_structures([path], ["Fe8Ni8Co10Cr6"], "fcc", SYSTEM)
    assert time.monotonic() - start < 10
    if values is None:
        assert len(faults) == 1 and path.name in faults[0]
        return None
    blocks = [len(common.cluster_columns(SYSTEM, block)) for block in common.BLOCKS]
    sums = [part.sum() for part in np.split(values[0], np.cumsum(blocks)[:-1])]
    np.testing.assert_allclose(sums, 1)
    return values[0]


def negative_scale(structure, direct):
    """The scale is the volume; lattice, and Cartesian coordinates, in other units than angstrom."""
    scaled = structure.copy()
    scaled.scale_lattice(8 * structure.volume)
    return with_line(as_text(scaled, direct), 1, f"-{structure.volume:.10f}\n")


def with_line(text, number, line):
    return "".join(line if i == number else one for i, one in enumerate(text.splitlines(keepends=True)))


DIALECTS = {
    "Cartesian": lambda one: as_text(one, direct=False),
    "volume": lambda one: negative_scale(one, direct=True),
    "volume, Cartesian": lambda one: negative_scale(one, direct=False),
    "selective dynamics": lambda one: as_text(one, selective_dynamics=[[True, False, True]] * len(one)),
    "what follows": lambda one: as_text(one) + "\n" + "0.0 0.0 garbage\n" * 5,
    "Windows": lambda one: with_line(as_text(one), 0, "Gitter in Å\n").replace("\n", "\r\n"),
    "VASP 4": lambda one: with_line(as_text(one), 5, ""),  # names stand at the ends of lines
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects(structure, tmp_path, dialect):
    """The same structure, written otherwise, has the same clusters."""
    (tmp_path / "plain").write_text(as_text(structure))
    (tmp_path / "other").write_text(DIALECTS[dialect](structure), "latin-1", newline="")
    np.testing.assert_allclose(counted(tmp_path / "other"), counted(tmp_path / "plain"), atol=1e-12)


CUBES = [np.diag([edge] * 3) for edge in (1e-3, 0, 1e4, 1e200, 30.0)]
SLABS = [np.diag(edges) for edges in ([1e-6, 3e4, 3e4], [1e-5, 1e3, 1e3], [0.3, 100, 100])]
SHEARED = [[[5, 0, 0], [5, 1e-9, 0], [0, 0, 5]], [[7.2, 0, 0], [7.2e5, 7.2, 0], [0, 0, 7.2]]]


@pytest.mark.parametrize("matrix", [*CUBES, *SLABS, *SHEARED])
def test_absurd_lattices(structure, tmp_path, matrix, little_memory):
    """No endless search for neighbours: results or a fault within seconds."""
    lines = as_text(structure).splitlines()
    lines[2:5] = [" ".join(map(repr, map(float, row))) for row in np.asarray(matrix)]
    (tmp_path / "POSCAR").write_text("\n".join(lines))
    counted(tmp_path / "POSCAR")


# ==== random edits ================================================================================

WORDS = re.split(
    " ", "0 -1 1e308 -1e308 1e-308 nan inf 1e6 99999999999 1_0 abc 0x10 1,5 ½ 1e400 --1 1D0 Fe \x00 "
)
LINES = ["", "Direct", "Selective dynamics", "Cartesian", "Xx Yy", "Fe", "\ufeff", "16 16", "(" * 5000]


def mutated(text, generator):
    """The text after one to three random edits of lines, words or characters, in some encoding."""
    for _ in range(generator.integers(1, 4)):
        lines = text.split("\n")
        i = generator.integers(min(len(lines), 12) if generator.random() < 0.7 else len(lines))
        words, kind = lines[i].split(" "), generator.integers(6)
        words[generator.integers(len(words))] = generator.choice(WORDS)
        p = generator.integers(len(lines[i]) + 1)
        new = generator.choice([*"0123456789.-e", chr(generator.integers(1, 0x300))])
        character = lines[i][:p] + new + lines[i][p + 1 :]
        new = [[], [lines[i]] * 2, [generator.choice(LINES)], [" ".join(words)], [character], [lines[i]]][
            kind
        ]
        text = "\n".join(lines[:i] + new + (lines[i + 1 :] if kind < 5 else []))
    content = text.encode(["utf-8", "utf-8", "latin-1", "utf-16"][generator.integers(4)], errors="replace")
    p = generator.integers(5 * len(content) + 1)
    return content[:p] + generator.bytes(3) + content[p + 1 :] if p < len(content) else content


@pytest.mark.parametrize("seed", range(6))
def test_mutated_poscars(structure, tmp_path, seed, little_memory):
    generator, good = np.random.default_rng(seed), 0
    for _ in range(30):
        content = mutated(as_text(structure), generator)
        (tmp_path / "POSCAR").write_bytes(content)
        try:
            good += counted(tmp_path / "POSCAR") is not None
        except Exception as error:
            raise AssertionError(f"{error!r} from {content[:600]!r}") from error
    assert good < 30


@pytest.mark.parametrize("name", ["Database.csv", "fcc_train.csv"])
@pytest.mark.parametrize("seed", range(4))
def test_mutated_tables(data, name, seed):
    generator = np.random.default_rng(1000 + seed)
    text = (data / name).read_text().replace(",", " , ")  # words to mutate
    for _ in range(25):
        content = mutated(text, generator).replace(b" , ", b",")
        (data / name).write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                frame, _ = common.read_database(data, ["Ef", "Ms"])
                assert np.isfinite(frame[[ENERGY, MOMENT]]).all(axis=None)
                found = common.load_data(data, data, "Ef")
                assert np.isfinite(found.targets).all() and np.isfinite(found.inputs).all()
        except settings.InputError:
            pass
        except Exception as error:
            raise AssertionError(f"{error!r} from {content[:600]!r}") from error


# ==== runs that end in a write ====================================================================


@pytest.fixture(params=SCRIPTS[:3])
def earlier(request, data):
    """A script and a folder, beside which lie results of the same run that someone has changed."""
    run(request.param, *flags_of(request.param, data))
    for path in data.glob("*_train.csv") if request.param == SCRIPTS[0] else (data.parent / "out").iterdir():
        if path.suffix != ".json":
            path.write_bytes(b"earlier")
    return request.param, data


def test_disk_full(earlier, monkeypatch):
    """No part of a file is left; of main.py, it is the checkpoint that does not fit."""
    resource = pytest.importorskip("resource")
    script, data = earlier
    monkeypatch.setattr(report, "plot_parity", lambda *rest: rest[-1].write_bytes(b""))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000 if script == "main.py" else 9_000, before[1]))
    try:
        assert script in refused(script, data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_interrupted_between_two_files(earlier, monkeypatch):
    script, data = earlier
    write, written = settings.write_csv, []

    def write_csv(frame, path):
        if written:
            raise KeyboardInterrupt
        written.append(write(frame, path))

    monkeypatch.setattr(settings, "write_csv", write_csv)
    assert "interrupted" in refused(script, data, status=130)
    assert written


def test_interrupted_while_files_get_their_names(earlier, monkeypatch):
    """Ctrl-C waits until all have theirs, and works again afterwards."""
    script, data = earlier
    before, replace = signal.getsignal(signal.SIGINT), os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: [signal.raise_signal(signal.SIGINT), replace(*paths)])
    run(script, *flags_of(script, data))
    assert b"earlier" not in files(data.parent).values() and not list(data.parent.rglob(".*"))
    assert signal.getsignal(signal.SIGINT) == before


def test_killed_between_two_names(data):
    """Each table is the earlier or the later one, whole; the same run again puts all right."""
    fcc, bcc = (data / f"{phase}_train.csv" for phase in common.PHASES)
    whole, replace = files(data), os.replace
    fcc.write_text("earlier")
    bcc.write_text("earlier")
    if not (child := os.fork()):
        os.replace = lambda one, other: os.kill(os.getpid(), 9) if other == bcc else replace(one, other)
        with suppress(BaseException):
            run("structure_stat.py", "--data-dir", data)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert (fcc.read_bytes(), bcc.read_text()) == (whole[fcc.relative_to(data)], "earlier")
    run("structure_stat.py", "--data-dir", data)
    assert files(data).items() >= whole.items()


def start(*command, **more):
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **more)


def stopped(process, started, sent):
    """Send a signal when standard error shows that the work has started; returns what comes after that."""
    while not re.search(started, text := process.stderr.read1()):
        assert text
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == {signal.SIGINT: 130}.get(sent, -sent) and "Traceback" not in error
    return error


def test_interrupted_training(data):
    run("main.py", *flags_of("main.py", data))
    before, flags = files(data.parent), ["--epochs", "100000", "--patience", "100000"]
    process = start("main.py", *flags_of("main.py", data), *flags, start_new_session=True)
    assert "interrupted" in stopped(process, rb"training: .*\| [1-9]\d*/", signal.SIGINT)
    assert files(data.parent) == before


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_main_process(tmp_path, sent):
    """If they did not, its standard error, which they hold too, would never end."""
    program = "import structure_stat as s; s.joblib.cpu_count = lambda: 6; s.settings.run(s.main)"
    process = start("-c", program, "--table-dir", tmp_path, start_new_session=True)
    stopped(process, rb" [1-9]\d*/438", sent)
    assert not list(tmp_path.iterdir())


def test_two_runs_at_once(data):
    """Both succeed, and each file is whole."""
    runs = [start("main.py", *flags_of("main.py", data)) for _ in range(2)]
    errors = [one.communicate()[1] for one in runs]
    assert [one.returncode for one in runs] == [0, 0], errors
    both = files(data.parent)
    run("main.py", *flags_of("main.py", data))
    assert files(data.parent).keys() == both.keys()
    assert all(both[path] == content for path, content in files(data.parent).items() if path.suffix == ".csv")


def test_a_terminal_without_greek_letters(data):
    """As on Windows, where output that goes to a file is in cp1252."""
    flags = [*flags_of("main.py", data), "--target", "Ms", "--method", "scratch_prime"]
    process = start("main.py", *flags, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    error = process.communicate()[1].decode()
    assert process.returncode == 0, error
