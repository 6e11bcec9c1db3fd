"""What every script does before and after its work: settings, one-line errors, files written whole.

Nothing to run here. A script's settings are the constants of its fenced block; each is also a flag.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace

# ---- settings of all scripts ---------------------------------------------------------------------
ELEMENTS = None  # as "Fe Ni Co"; None: those in the database, the paper's first, in the paper's order
EXCLUDED_PAIRS = "Mn-Pd"  # pairs that no alloy holds, as "Mn-Pd Al-Co"; None: those no structure holds
# --------------------------------------------------------------------------------------------------


class InputError(Exception):
    """Something in the input that the user has to mend: ends a script with one line and status 2."""


# ==== what a setting may be: functions from text to a value, ValueError says what was expected ====


def one_of(*options):
    def parse(text):
        if text not in options:
            raise ValueError(f"one of {', '.join(options)}")
        return text

    return parse


def words_of(*options):
    def parse(text):
        words = text.replace(",", " ").split()
        if not words or not set(words) <= set(options):
            raise ValueError(f"one or more of {', '.join(options)}")
        return [option for option in options if option in words]

    return parse


def number(kind, low, high=1e9):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            upper = f"to {high:g}" if high < 1e9 else "or more"
            raise ValueError(f"{'a whole number' if kind is int else 'a number'}, {low:g} {upper}")
        return value

    return parse


def true_or_false(text):
    return one_of("True", "False")(text) == "True"


def optional(parse, *words):
    """None, one of the words as it is, or what parse takes."""

    def parse_or_word(text):
        if text in ("None", *words):
            return None if text == "None" else text
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"{' or '.join(('None', *words))} or {error}") from None

    return parse_or_word


def numbers(text):
    """'3', '0-7' or '0,3,5-8' -> a list of whole numbers, each once."""
    found = []
    for part in text.replace(",", " ").split():
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= last - first < 100_000:
            break
        found += range(first, last + 1)
    else:
        if found:
            return list(dict.fromkeys(found))
    raise ValueError("a number, a range or a list, such as 0 or 0-7 or 0,3,5")


def split_numbers(text):
    """As `numbers`; 'all' is the one split whose training set is all alloys."""
    try:
        return [text] if text == "all" else numbers(text)
    except ValueError as error:
        raise ValueError(f"all, or {error}") from None


def folder(text):
    with suppress(RuntimeError):  # ~user, of a user that there is not
        if text:
            return Path(text).expanduser()
    raise ValueError("a folder")


def element_list(text):
    from pymatgen.core import Element

    words = text.replace(",", " ").split()
    if not words or not all(Element.is_valid_symbol(word) for word in words) or len(set(words)) < len(words):
        raise ValueError("element symbols, each once, such as Fe Ni Co")
    return tuple(words)


def pair_list(text):
    pairs = [tuple(word.split("-")) for word in text.replace(",", " ").split()]
    if not all(len(pair) == 2 and pair[0] != pair[1] for pair in pairs):
        raise ValueError("pairs of elements, such as Mn-Pd")
    for pair in pairs:
        element_list(" ".join(pair))
    return pairs


# Every constant that is a setting of more than one script, and what it may be. Which of them a script
# has, and with what default, stands in its own block of constants.
OPTIONS = {
    "DATA_DIR": folder,
    "TABLE_DIR": optional(folder),
    "RESULTS_DIR": folder,
    "ALLOYS": one_of("4+5", "Total"),
    "PERCENT": number(float, 0, 100),
    "SEEDS": numbers,
    "SPLITS": split_numbers,
    "SELECT_BY": one_of("reference", "validation"),
    "HOLD_OUT": number(float, 0.01, 0.9),
    "REFIT": true_or_false,
    "PHASE_INPUT": one_of("named", "found"),
    "CLUSTERS": words_of("points", "pairs", "triplets", "second_pairs"),
    "ALPHA": optional(number(float, 0), "tuned"),
    "AUGMENT": number(int, 1),
    "SOURCE_EPOCHS": number(int, 0),
    "SOURCE_LEARNING_RATE": number(float, 0),
    "EPOCHS": number(int, 2),
    "PATIENCE": number(int, 1),
    "BATCH_SIZE": number(int, 1),
    "LEARNING_RATE": optional(number(float, 0)),
    "DEVICE": one_of("auto", "cpu", "cuda", "mps"),
    "PREDICT": optional(str),
    "CHECKPOINT": optional(Path),
    "ELEMENTS": optional(element_list),
    "EXCLUDED_PAIRS": optional(pair_list),
}


def as_text(value):
    """A constant as it would be typed: [0, 1] -> '0 1', [('Mn', 'Pd')] -> 'Mn-Pd'."""
    if isinstance(value, list | tuple | range | set):
        return " ".join("-".join(one) if isinstance(one, list | tuple) else str(one) for one in value)
    return str(value)


def parse(name, value, options):
    """A setting's value from text or a Python value; ValueError says where and what was expected."""
    try:
        return options[name](as_text(value))
    except ValueError as error:
        raise ValueError(f"expected {error}; got '{as_text(value)}'") from None


def read(script, **own_options):
    """Settings of one run: the constants of a script, each replaced by its flag where one is given.

    script: the script's globals(); every constant there that OPTIONS or own_options know becomes a
    flag (TABLE_DIR -> --table-dir), with the comment beside the constant as its help. ELEMENTS and
    EXCLUDED_PAIRS of this file become flags of every script.
    own_options: parsers of constants whose options are the script's own, such as METHOD.
    Prints the settings in force. Returns them as a namespace; DATA_DIR and such are Paths.
    Ends the program with one line and status 2 on an unknown flag or a value out of range.
    """
    program = Path(script["__file__"]).name
    options = OPTIONS | own_options
    shared = {"ELEMENTS": ELEMENTS, "EXCLUDED_PAIRS": EXCLUDED_PAIRS}
    defaults = {name: value for name, value in script.items() if name in options} | shared
    sources = Path(script["__file__"]).read_text("utf-8") + Path(__file__).read_text("utf-8")
    flags = {name: "--" + name.lower().replace("_", "-") for name in defaults}

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            self.exit(2, f"{program}: {message}; the flags are {' '.join(flags.values())}\n")

    parser = Parser(
        program,
        usage=f"{program} [--flag value ...]",
        description=script["__doc__"],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, value in defaults.items():
        comment = re.search(rf"^{name} = .*?  # (.*)$", sources, re.MULTILINE)
        help_text = f"{comment[1] if comment else ''} (default: {as_text(value)})".replace("%", "%%")
        nargs = "*" if options[name] is true_or_false else "+"  # --fix alone means --fix True
        parser.add_argument(flags[name], nargs=nargs, metavar="VALUE", help=help_text)
    given = vars(parser.parse_args())

    as_flags = {name for name in defaults if given[name.lower()] is not None}
    settings, in_force = SimpleNamespace(given=as_flags), []
    for name, default in defaults.items():
        words = given[name.lower()]
        text = as_text(default) if words is None else " ".join(words) if words else "True"
        try:
            setattr(settings, name, parse(name, text, options))
        except ValueError as error:
            where = f"constant {name}" if words is None else flags[name]
            parser.exit(2, f"{program}: {where}: {error}\n")
        in_force.append(f"{name} {text}")
    print(", ".join(in_force), flush=True)
    if "TABLE_DIR" in defaults and settings.TABLE_DIR is None:
        settings.TABLE_DIR = settings.DATA_DIR
    return settings


class Stream:
    """A standard stream whose reader may leave, as head does: what comes then is dropped, the run goes on."""

    def __init__(self, stream):
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115 (None: closed, as by >&-)

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        self.unless_broken(self.stream.write, text)

    def flush(self):
        self.unless_broken(self.stream.flush)

    def unless_broken(self, call, *arguments):
        try:
            call(*arguments)
        except BrokenPipeError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


def run(main):
    """Run a script's main; bad input ends it with one line on standard error and status 2."""
    program = Path(sys.argv[0]).name
    with suppress(AttributeError):  # a terminal without Greek letters gets question marks for them
        sys.stdout.reconfigure(errors="replace")
    with (
        redirect_stdout(Stream(sys.stdout)), redirect_stderr(Stream(sys.stderr)),
        handled(lambda *_: sys.exit(143), signal.SIGTERM),  # an end as any other, workers and files too
    ):  # fmt: skip
        try:
            main()
        except InputError as error:
            print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:  # a full disk, a file in a program that locks it
            where = error.filename2 or error.filename
            print(f"{program}: {f'{where}: ' if where else ''}{error.strerror or error}", file=sys.stderr)
            sys.exit(2)
        except BrokenExecutor:  # joblib's says at length what may have been
            print(f"{program}: a worker process was killed, perhaps as memory ran out", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("\ninterrupted; the files of each run are all as before, or all new", file=sys.stderr)
            sys.exit(130)
        finally:
            sys.stdout.flush()


def at_error(kind, error, trace):
    """For what nothing catches: no traceback of Ctrl-C before `run` has begun, as in the imports."""
    if kind is KeyboardInterrupt:
        sys.exit(130)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = at_error


@contextmanager
def handled(handler, *signals):
    """Handle the signals in this way within the block; signals are the main thread's."""
    before = {}
    with suppress(ValueError):
        for number in signals:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_with(parent):
    """End this process once the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if multiprocessing.current_process().name.startswith("LokyProcess"):  # a worker of joblib's
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends its workers,
    # or was killed, and they would wait for it for ever.
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()


# ==== files =======================================================================================


def listed(faults, most=8):
    """The faults of one kind as one text."""
    more = f", and {len(faults) - most} more" if len(faults) > most else ""
    return ", ".join(map(str, faults[:most])) + more


@contextmanager
def whole_files(folder, reserved=None):
    """A function from a file's name to a path to write to; all get their names when the block ends well.

    If it does not, none does, and what was there before stays, also where one of them cannot get its name.
    A temporary name that no other run has keeps two at once from writing into one file; the process
    number would not, between machines that share a folder. Ctrl-C waits until all have their names.
    reserved: a file to take away if none has.
    """
    temporary, earlier, came = {}, {}, []

    def hidden(name):
        return folder / f".{uuid.uuid4().hex[:12]}.{name}"

    def new(name):
        temporary[name] = hidden(name)
        return temporary[name]

    try:
        yield new
        with handled(lambda number, _: came.append(number), signal.SIGINT, signal.SIGTERM):
            for name in temporary:
                if (folder / name).exists():
                    earlier[name] = hidden(name)
                    shutil.copy2(folder / name, earlier[name])
            put_in_place(folder, temporary, earlier)
            reserved = None
        if came:
            signal.raise_signal(came[0])
    finally:
        for path in [*temporary.values(), *earlier.values(), *([reserved] if reserved else [])]:
            path.unlink(missing_ok=True)


def put_in_place(folder, temporary, earlier):
    """Give files their names, {name: path}; those that have them give them back if another cannot.

    earlier: copies of what was there before, likewise; those that cannot be put back are taken out of it.
    """
    done = []
    try:
        for name, written in temporary.items():
            os.replace(written, folder / name)
            done.append(name)
    except OSError as error:
        stuck, kept = [], []
        for name in done:
            try:
                os.replace(earlier[name], folder / name) if name in earlier else (folder / name).unlink()
            except OSError:
                stuck.append(name)
                kept += [earlier.pop(name).name] if name in earlier else []
        if stuck:
            raise InputError(
                f"{error.filename2}: {error.strerror}; in {folder} {listed(stuck)} are new already and could "
                f"not be put back; what was there before is in {listed(kept) or 'no file'}"
            ) from None
        raise


@contextmanager
def files_of_run(folder, name, pattern, content):
    """As `whole_files`; yields its function, and name, or name_2 and so on: the first that is free.

    That is one whose file, named by the pattern, is not there or the same; it is made at once, so that no
    other run takes the name. So a run replaces its own earlier results, and never those of another.
    """
    for free in itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2))):
        path = folder / pattern.format(free)
        try:
            with path.open("xb") as file:
                file.write(content.encode())
            made = True
        except FileExistsError:
            made = False
        if made or path.read_bytes() == content.encode():
            break
    with whole_files(folder, path if made else None) as new:
        yield new, free


def identity(settings, data):
    """What a run's results follow from, as text: its settings and the data's checksums.

    Not where the data and the results lie, and which alloys are predicted afterwards.
    """
    places = ("DATA_DIR", "TABLE_DIR", "RESULTS_DIR", "PREDICT", "CHECKPOINT", "given")
    used = {name: value for name, value in vars(settings).items() if name not in places}
    return json.dumps({"settings": used, "sha256": data}, indent=1, default=str) + "\n"


def csv_text(frame):
    """A frame as CSV with the same line ends on all machines."""
    return frame.to_csv(index=False, lineterminator="\n")


def write_csv(frame, path):
    path.write_text(csv_text(frame), encoding="utf-8", newline="")


def output_folder(path):
    """Make the folder, and see that it can be written to, before the long work and not after."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(
            f"{path}: expected a folder that can be written to ({error.strerror or error})"
        ) from None
