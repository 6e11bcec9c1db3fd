"""Whatever a POSCAR or a CSV holds, and wherever a run is killed: results, or one line, and no harm.

Hundreds of seeded random edits go through the functions that read files; only success or an
InputError may come of them, without a warning and in bounded time and memory.
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
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY, random_alloy, run
from pymatgen.core import Structure
from pymatgen.io.vasp.inputs import Poscar

import common
import structure_stat

ELEMENTS = ("Fe", "Ni", "Co", "Cr", "Mn")
SYSTEM = common.System(ELEMENTS, ())
FILLING = {"Fe": 8, "Ni": 8, "Co": 10, "Cr": 6}
FORMULA = "Fe8Ni8Co10Cr6"
NUMBERS = [
    "0", "-1", "1e308", "-1e308", "1e-308", "nan", "inf", "1e6", "99999999999", "0.0", "1_0", "abc", "",
    "0x10", "1,5", "½", "1e400", "--1", "1D0", "16 16",
]  # fmt: skip
TEXTS = [
    "",
    "Direct",
    "Selective dynamics",
    "Cartesian",
    "Xx Yy",
    "Fe",
    "\x00",
    "\ufeff",
    "é",
    "-",
    "(" * 5000,
]


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
def poscar():
    structure = random_alloy("fcc", FILLING, seed=1).get_sorted_structure()
    return Poscar(structure).get_str(significant_figures=10)


def mutated(text, generator):
    """One to three random edits of bytes, words or lines."""
    for _ in range(generator.integers(1, 4)):
        lines = text.split("\n")
        i = generator.integers(min(len(lines), 12) if generator.random() < 0.7 else len(lines))
        words = lines[i].split(" ")
        kind = generator.integers(8)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(i, lines[generator.integers(len(lines))])
        elif kind == 2:
            lines[i] = TEXTS[generator.integers(len(TEXTS))]
        elif kind == 3:
            words[generator.integers(len(words))] = NUMBERS[generator.integers(len(NUMBERS))]
            lines[i] = " ".join(words)
        elif kind == 4:  # a digit, or the point
            place = [m.start() for m in re.finditer(r"[\d.]", lines[i])]
            if place:
                p = place[generator.integers(len(place))]
                lines[i] = lines[i][:p] + "0123456789.-e"[generator.integers(13)] + lines[i][p + 1 :]
        elif kind == 5:
            lines = lines[: i + 1]
        elif kind == 6:
            words[generator.integers(len(words))] = ""
            lines[i] = " ".join(words)
        else:
            p = generator.integers(len(text) + 1)
            lines = (text[:p] + chr(generator.integers(1, 0x300)) + text[p:]).split("\n")
        text = "\n".join(lines)
    return text


def encoded(text, generator):
    encoding = ["utf-8", "utf-8", "utf-8", "latin-1", "utf-16", "utf-8-sig"][generator.integers(6)]
    data = text.encode(encoding, errors="replace")
    if generator.random() < 0.2:
        data = data.replace(b"\n", b"\r\n")
    if generator.random() < 0.2 and data:
        p = generator.integers(len(data))
        data = data[:p] + bytes(generator.integers(0, 256, 3).tolist()) + data[p + 1 :]
    return data


def counted(path, phase="fcc", formula=FORMULA):
    """count_structures on one file: its row, or None with one fault; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, faults = structure_stat.count_structures([path], [formula], phase, SYSTEM)
    if values is None:
        assert len(faults) == 1 and path.name in faults[0]
        return None
    assert values.shape[0] == 1 and np.isfinite(values).all()
    blocks = [len(common.cluster_columns(SYSTEM, block)) for block in common.BLOCKS]
    for part in np.split(values[0], np.cumsum(blocks)[:-1]):
        assert part.sum() == pytest.approx(1)
    return values[0]


@pytest.mark.parametrize("seed", range(20))
def test_mutated_poscars(poscar, tmp_path, seed, little_memory):
    generator = np.random.default_rng(seed)
    path, good = tmp_path / "Fe8Ni8Co10Cr6_sqsfcc", 0
    for _ in range(30):
        data = encoded(mutated(poscar, generator), generator)
        path.write_bytes(data)
        start = time.monotonic()
        try:
            good += counted(path) is not None
        except Exception as error:
            raise AssertionError(f"{error!r} from {data[:600]!r}") from error
        assert time.monotonic() - start < 20, data[:600]
    assert good < 30


class TestPoscarDialects:
    """The same structure, written otherwise, has the same clusters."""

    @pytest.fixture
    def structure(self):
        return random_alloy("fcc", FILLING, seed=1).get_sorted_structure()

    def check(self, structure, text, tmp_path):
        paths = [tmp_path / name for name in ("plain", "other")]
        paths[0].write_text(Poscar(structure).get_str(significant_figures=14))
        paths[1].write_bytes(text if isinstance(text, bytes) else text.encode())
        first, second = (counted(path) for path in paths)
        np.testing.assert_allclose(second, first, atol=1e-12)

    def test_cartesian(self, structure, tmp_path):
        self.check(structure, Poscar(structure).get_str(direct=False, significant_figures=14), tmp_path)

    @pytest.mark.parametrize("direct", [True, False])
    def test_negative_volume(self, structure, tmp_path, direct):
        text = Poscar(structure).get_str(direct=direct, significant_figures=14)
        lines = text.splitlines()
        # the lattice, and Cartesian coordinates, in units of half an angstrom; the scale is the volume
        lines[1] = f"-{structure.volume:.10f}"
        for i in [2, 3, 4, *([] if direct else range(8, 8 + len(structure)))]:
            x, y, z, *rest = lines[i].split()
            lines[i] = " ".join([*(f"{2 * float(number):.14f}" for number in (x, y, z)), *rest])
        self.check(structure, "\n".join(lines), tmp_path)

    def test_selective_dynamics(self, structure, tmp_path):
        chosen = Poscar(structure, selective_dynamics=[[True, False, True]] * len(structure))
        self.check(structure, chosen.get_str(significant_figures=14), tmp_path)

    def test_velocities_and_what_else_follows(self, structure, tmp_path):
        text = Poscar(structure).get_str(significant_figures=14)
        self.check(structure, text + "\n" + "0.0 0.0 garbage\n" * 5, tmp_path)

    def test_comment_in_another_encoding(self, structure, tmp_path):
        lines = Poscar(structure).get_str(significant_figures=14).splitlines()
        lines[0] = "Gitter in Å"
        self.check(structure, "\r\n".join(lines).encode("latin-1"), tmp_path)

    def test_without_element_names(self, structure, tmp_path):
        """VASP 4: what the atoms are cannot be known, unless a line says so at its end."""
        lines = Poscar(structure).get_str(significant_figures=14).splitlines()
        del lines[5]
        self.check(structure, "\n".join(lines), tmp_path)
        lines[7:] = [" ".join(line.split()[:3]) for line in lines[7:]]
        (tmp_path / "bare").write_text("\n".join(lines))
        assert counted(tmp_path / "bare") is None


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([1e-6, 3e4, 3e4]),
        np.diag([1e-5, 1e3, 1e3]), np.diag([0.3, 100, 100]), np.diag([1e4] * 3), np.diag([1e-3] * 3),
        np.zeros((3, 3)), np.diag([1e200] * 3), [[5, 0, 0], [5, 1e-9, 0], [0, 0, 5]],
        [[7.2, 0, 0], [7.2e5, 7.2, 0], [0, 0, 7.2]], np.diag([30.0, 30.0, 30.0]),
    ],
)  # fmt: skip
def test_absurd_lattices(poscar, tmp_path, matrix, little_memory):
    """No endless search for neighbours: results or a fault within seconds."""
    lines = poscar.splitlines()
    lines[2:5] = [" ".join(map(repr, map(float, row))) for row in np.asarray(matrix)]
    path = tmp_path / "POSCAR"
    path.write_text("\n".join(lines))
    start = time.monotonic()
    counted(path)
    assert time.monotonic() - start < 10


def test_more_atoms_than_lines(poscar, tmp_path, little_memory):
    """Refused before pymatgen makes a list of so many atoms."""
    lines = poscar.splitlines()
    lines[6] = "8 8 10 1999999999"
    path = tmp_path / "POSCAR"
    path.write_text("\n".join(lines))
    faults = structure_stat.count_structures([path], [FORMULA], "fcc", SYSTEM)[1]
    assert len(faults) == 1 and "fewer lines than atoms" in faults[0]


def test_an_atom_far_from_all_others(tmp_path):
    structure = random_alloy("fcc", FILLING, seed=1)
    apart = Structure(
        np.diag([25.0] * 3),
        structure.species,
        [*structure.cart_coords[:-1], [18, 18, 18]],
        coords_are_cartesian=True,
    )
    (tmp_path / "POSCAR").write_text(Poscar(apart.get_sorted_structure()).get_str())
    counted(tmp_path / "POSCAR")


# ---- CSV files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_mutated_databases(small_data, tmp_path, seed):
    generator = np.random.default_rng(1000 + seed)
    text = (small_data / "Database.csv").read_text().replace(",", " , ")  # words to mutate
    settings = SimpleNamespace(DATA_DIR=tmp_path, TABLE_DIR=tmp_path, ELEMENTS=None, EXCLUDED_PAIRS=None)
    for name in ("fcc_train.csv", "bcc_train.csv"):
        shutil.copy(small_data / name, tmp_path)
    for _ in range(25):
        data = encoded(mutated(text, generator).replace(" , ", ","), generator)
        (tmp_path / "Database.csv").write_bytes(data)
        for read in (common.read_database, common.load_tables):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    frame, system = read(settings)
                values = frame[list(common.TARGETS.values())].to_numpy(float)
                assert len(frame) and np.isfinite(values).all() and len(system.elements)
            except common.InputError:
                pass
            except Exception as error:
                raise AssertionError(f"{error!r} from {data[:600]!r}") from error


@pytest.mark.parametrize("seed", range(6))
def test_mutated_tables(small_data, tmp_path, seed):
    generator = np.random.default_rng(2000 + seed)
    settings = SimpleNamespace(DATA_DIR=small_data, TABLE_DIR=tmp_path, ELEMENTS=None, EXCLUDED_PAIRS=None)
    shutil.copy(small_data / "bcc_train.csv", tmp_path)
    text = (small_data / "fcc_train.csv").read_text().replace(",", " , ")
    for _ in range(15):
        data = encoded(mutated(text, generator).replace(" , ", ","), generator)
        (tmp_path / "fcc_train.csv").write_bytes(data)
        try:
            common.load_tables(settings)
        except common.InputError:
            pass
        except Exception as error:
            raise AssertionError(f"{error!r} from {data[:600]!r}") from error


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("/etc/Fe_sqsfcc", "plain name"),
        ("../POSCARS/FeNi_sqsfcc", "plain name"),
        ("Fe" + "e" * 300 + "_sqsfcc", "plain name"),
        ("Fe0Ni0_sqsfcc", "formula"),
        ("XxFe_sqsfcc", "formula"),
        ("Fe" + "9" * 180 + "_sqsbcc", "ends with its phase"),
        ("(" * 150 + "_sqsfcc", "formula"),
    ],
)
def test_names_that_are_no_structures(small_data, tmp_path, row, expected):
    frame = pd.read_csv(small_data / "Database.csv")
    frame.loc[0, "structures"] = row
    frame.to_csv(tmp_path / "Database.csv")
    (tmp_path / "POSCARS").mkdir()
    result = run("structure_stat.py", "--data-dir", tmp_path, status=2)
    lines = result.err.splitlines()
    assert len(lines) == 1 and expected in lines[0]


@pytest.mark.parametrize("seed", range(6))
def test_mutated_data_from_outside(small_data, tmp_path, seed):
    """Whole runs: status 0, or 2 with one line and the tables as they were."""
    generator = np.random.default_rng(3000 + seed)
    data = shutil.copytree(small_data, tmp_path / "data")
    paths = sorted((data / "POSCARS").iterdir())
    changed = data / "Database.csv" if seed % 2 else paths[generator.integers(len(paths))]
    changed.write_bytes(encoded(mutated(changed.read_text(), generator), generator))
    command = [sys.executable, ROOT / "structure_stat.py", "--data-dir", data]
    for flags in ([], ["--check"]):
        finished = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert finished.returncode in (0, 2), finished.stderr
        lines = [line for line in finished.stderr.replace("\r", "\n").splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("structures:")]  # progress bar
        assert len(lines) == (finished.returncode == 2), finished.stderr
        if finished.returncode and not flags:
            assert (data / "fcc_train.csv").read_bytes() == (small_data / "fcc_train.csv").read_bytes()


# ---- runs that are killed, and two at once -------------------------------------------------------

# Runs a script with os.replace replaced: the n-th file is written, and then the process ends
# before, or fails instead of, giving it its name.
KILLED = """
import os, runpy, signal, sys
sys.path.insert(0, {root!r})
left, replace = [{n}], os.replace
def broken(source, target):
    left[0] -= 1
    if left[0] == 0:
        {how}
    replace(source, target)
os.replace = broken
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
HOW = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "interrupted": "raise KeyboardInterrupt",
    "disk full": "raise OSError(28, 'No space left on device', str(target))",
}
WRITES = {"structure_stat.py": 2, "generate.py": 6, "main.py": 5, "main_transfer.py": 5}


def visible(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize(
    ("script", "how"),
    [
        *(("structure_stat.py", how) for how in HOW),
        *(("generate.py", how) for how in HOW),
        ("main.py", "killed"),
        ("main_transfer.py", "disk full"),
    ],
)
def test_killed_in_a_write(small_data, tmp_path, script, how):
    """Each file is the earlier run's or the later one's, whole; what ends in order leaves nothing else."""
    out = tmp_path / "out"
    out.mkdir()
    if script == "structure_stat.py":
        flags = ["--data-dir", small_data, "--table-dir", out]
        for phase in common.PHASES:
            (out / f"{phase}_train.csv").write_text("earlier")
    else:
        flags = ["--data-dir", small_data, "--results-dir", out, *(TINY if script[:4] == "main" else [])]
        if script == "main_transfer.py":
            flags += ["--method", "da", "--augment", "20"]
    n = WRITES[script] if how != "killed" else WRITES[script] - 1
    program = KILLED.format(root=str(ROOT), n=n, how=HOW[how], argv=[str(ROOT / script), *map(str, flags)])
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    expected = {"killed": -signal.SIGKILL, "interrupted": 130, "disk full": 2}[how]
    assert finished.returncode == expected, finished.stderr
    assert "Traceback" not in finished.stderr
    broken = visible(out)
    if how != "killed":
        assert not [path for path in out.iterdir() if path.name[0] == "."]
    run(script, *flags)
    whole = visible(out)
    assert broken.keys() < whole.keys() or script == "structure_stat.py"
    for name, content in broken.items():
        if name.endswith(".csv"):
            assert content in (whole[name], b"earlier")


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_workers_end_with_the_main_process(tmp_path, sent, status):
    """If they did not, its standard error, which they hold too, would never end."""
    many_workers = "import structure_stat as s; s.joblib.cpu_count = lambda: 12; s.common.run(s.main)"
    command = [sys.executable, "-c", many_workers, "--table-dir", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    while not re.search(rb" [1-9]\d*/438", text := process.stderr.read1()):  # some are counted
        assert text
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == status and "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_two_runs_at_once(small_data, tmp_path):
    """Two runs of one script into one folder: both succeed, and each file is whole."""
    flags = ["--data-dir", small_data, "--results-dir", tmp_path, *TINY]
    command = [sys.executable, ROOT / "main.py", *map(str, flags)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in processes:
        error = process.communicate()[1]
        assert process.returncode == 0, error
    both = visible(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name[0] == "."]
    run("main.py", *flags)
    for name, content in visible(tmp_path).items():
        if name.endswith(".csv"):
            assert both[name] == content


def test_output_folder_many_times_at_once(tmp_path):
    """Looking whether a folder can be written to is no race."""
    program = (
        "import common, pathlib, sys\nfor _ in range(300): common.output_folder(pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, tmp_path]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert not os.listdir(tmp_path)
