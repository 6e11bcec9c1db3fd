"""What every script does first and last: constants become settings and flags, errors become one line.

Nothing to run here. A script's settings are the constants of the fenced block at its top, and those below,
which all scripts share. Each is also a flag for one run: TARGET and --target.
"""

import argparse
import os
import re
import sys
import tempfile
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

# ---- settings of all scripts ---------------------------------------------------------------------
DATA_DIR = "HEA_data"  # folder with Database.csv and POSCARS/
TABLE_DIR = None  # folder with the occupation tables; None: DATA_DIR
RESULTS_DIR = "results"  # folder in which each run makes its own
ELEMENTS = None  # as "Fe Ni Co"; None: those in the database, the paper's first, in the paper's order
EXCLUDED_PAIRS = "Mn-Pd"  # pairs that no alloy holds, as "Mn-Pd Al-Co"; None: those no structure holds
DEVICE = "auto"  # where networks train; auto: CUDA, else MPS, else CPU
JOBS = None  # processes at a time; None: as many as there are cores
# --------------------------------------------------------------------------------------------------


class InputError(Exception):
    """Something in the input that the user has to mend: ends a script with one line and status 2."""


# ==== what a setting may be =======================================================================
# A kind is (int, low, high) or (float, low, high); a tuple of words, None and other kinds, one of which it
# is; a list of words, one or more of which it is; `list`, the words as they were given; or a function from
# text to the value, which raises ValueError with what it expected.


def folder(text):
    return Path(os.path.expanduser(text))


def numbers(text):
    """'3', '0-7' or '0,3,5-8' -> a list of whole numbers, each once."""
    found = {}
    for part in text.replace(",", " ").split():
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= last - first < 100_000:
            raise ValueError("a number, a range or a list, such as 0 or 0-7 or 0,3,5")
        found |= dict.fromkeys(range(first, last + 1))
    return [*found] or numbers("-")


def split_numbers(text):
    """As `numbers`; 'all' is the one split whose training set is all alloys."""
    return [text] if text == "all" else numbers(text)


def element_list(text):
    from pymatgen.core import Element

    words = text.replace(",", " ").split()
    if not words or not all(map(Element.is_valid_symbol, words)) or len({*words}) < len(words):
        raise ValueError("element symbols, each once, such as Fe Ni Co")
    return tuple(words)


def pair_list(text):
    pairs = [element_list(word.replace("-", " ")) for word in text.replace(",", " ").split()]
    if not all(len(pair) == 2 for pair in pairs):
        raise ValueError("pairs of elements, such as Mn-Pd")
    return pairs


def parsed(value, kind):
    """A setting's value from a flag's words or a constant; ValueError says what was expected."""
    if kind is list:
        return [value] if isinstance(value, str) else value and [*value]
    text = as_text(value)
    if isinstance(kind, list):
        words = text.replace(",", " ").split()
        if not words or not {*words} <= {*kind}:
            raise ValueError(f"one or more of {', '.join(kind)}")
        return [word for word in kind if word in words]
    if not isinstance(kind, tuple):
        return kind(text)
    if kind[0] in (int, float):
        of, low, high = kind
        with suppress(ValueError):
            if low <= of(text) <= high:
                return of(text)
        raise ValueError(f"{'a whole number' if of is int else 'a number'}, {low:g} to {high:g}")
    words = {str(word): word for word in kind if isinstance(word, str | bool | None)}
    if text in words:
        return words[text]
    expected = ["one of " * (len(words) > 1) + ", ".join(words)]
    for other in kind:
        if other not in words.values():
            try:
                return parsed(text, other)
            except ValueError as error:
                expected.append(str(error))
    raise ValueError(" or ".join(expected))


def as_text(value):
    """A constant as it would be typed: [0, 1] -> '0 1', [('Mn', 'Pd')] -> 'Mn-Pd'."""
    if isinstance(value, list | tuple | range | set):
        return " ".join("-".join(one) if isinstance(one, list | tuple) else str(one) for one in value)
    return str(value)


RATE = (float, 0, 1e9)
SHARED = {
    "DATA_DIR": folder, "TABLE_DIR": (None, folder), "RESULTS_DIR": folder,
    "ELEMENTS": (None, element_list), "EXCLUDED_PAIRS": (None, pair_list),
    "DEVICE": ("auto", "cpu", "cuda", "mps"), "JOBS": (None, (int, 1, 1000)),
}  # fmt: skip
# Constants of more than one script, and what they may be; which of them a script has, it says itself.
OPTIONS = SHARED | {
    "ALLOYS": ("4+5", "Total"), "PERCENT": (float, 0, 100), "SEEDS": numbers, "SPLITS": split_numbers,
    "SELECT_BY": ("reference", "validation"), "HOLD_OUT": (float, 0.01, 0.9), "REFIT": (True, False),
    "PHASE_INPUT": ("named", "found"), "CLUSTERS": ["points", "pairs", "triplets", "second_pairs"],
    "ALPHA": (None, "tuned", RATE), "EPOCHS": (int, 2, 1e9), "PATIENCE": (int, 1, 1e9),
    "BATCH_SIZE": (int, 1, 1e9), "LEARNING_RATE": (None, RATE),
}  # fmt: skip


def read(script, words=None, **kinds):
    """Settings of a run, as a namespace: a script's constants and the shared ones, or flags in their place.

    script: its globals(). kinds: of constants that OPTIONS lacks. words: flags in place of the command
    line's; then nothing is printed. The comment beside a constant, its options and its default are its
    flag's help. Raises InputError on a flag that there is not, and on a value that cannot be.
    """
    kinds, files = OPTIONS | kinds, (Path(script["__file__"]), Path(__file__))
    sources = "".join(path.read_text("utf-8") for path in files)
    constants = {name: script.get(name, globals().get(name)) for name in [*script, *SHARED] if name in kinds}
    flags = {name: f"--{name.lower().replace('_', '-')}" for name in constants}
    look = {"formatter_class": argparse.RawDescriptionHelpFormatter, "usage": "%(prog)s [--flag value ...]"}
    parser = argparse.ArgumentParser(description=script["__doc__"], allow_abbrev=False, **look)
    for name, value in constants.items():
        comment, kind = re.search(rf"^{name} = .*?  # (.*)$", sources, re.MULTILINE), kinds[name]
        of_words = isinstance(kind, list | tuple) and {*map(type, kind)} == {str}
        options = f"; {', '.join(kind)}" if of_words else ""
        text = f"{comment[1] if comment else ''}{options} (default: {as_text(value)})".replace("%", "%%")
        parser.add_argument(flags[name], dest=name, nargs="*", metavar="VALUE", help=text)
    found, unknown = parser.parse_known_args(words)
    if unknown:
        raise InputError(f"unrecognized: {' '.join(unknown)}; the flags are {' '.join(flags.values())}")
    cfg, in_force = SimpleNamespace(), []
    for name, value in constants.items():
        given = getattr(found, name)
        value = value if given is None else given
        try:
            setattr(cfg, name, parsed(value, kinds[name]))
        except ValueError as error:
            where = f"constant {name}" if given is None else flags[name]
            raise InputError(f"{where}: expected {error}; got '{as_text(value)}'") from None
        in_force.append(f"{name} {as_text(value)}")
    if words is None:
        print(", ".join(in_force), flush=True)
    cfg.TABLE_DIR = cfg.TABLE_DIR or cfg.DATA_DIR
    return cfg


def run(main):
    """Run a script's main; bad input ends it with one line on standard error and status 2."""
    program, fault = Path(sys.argv[0]).name, None
    for stream in filter(None, (sys.stdout, sys.stderr)):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # where there are no Greek letters
    try:
        main()
    except InputError as error:
        fault = " ".join(str(error).split())
    except OSError as error:  # a full disk, a file in a program that locks it
        where = error.filename2 or error.filename
        fault = f"{where}: {error.strerror}" if where else error.strerror or str(error)
    except BrokenExecutor:  # joblib's says at length what may have been
        fault = "a worker process was killed, perhaps as memory ran out"
    except KeyboardInterrupt:
        print("\ninterrupted; earlier results are as they were", file=sys.stderr)
        sys.exit(130)
    if fault is not None:
        print(f"{program}: {fault}", file=sys.stderr)
        sys.exit(2)


def listed(faults, most=8):
    """The faults of one kind as one text."""
    more = f", and {len(faults) - most} more" if len(faults) > most else ""
    return ", ".join(map(str, faults[:most])) + more


def output_folder(path):
    """Make the folder, and see that it can be written to, before the long work and not after."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(f"{path}: expected a folder to write to ({error.strerror or error})") from None
