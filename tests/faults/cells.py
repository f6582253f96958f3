"""The fault matrix: every fault x whom it befalls x when; which of these cannot be, and what must come of the rest.

Pure: nothing is run here. A cell is written ``fault / victim / phase``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["goes on", "restarts", "ends", "dies", "stops", "rejoins"]

RANKS = ("rank 0", "rank 1")
MACHINES = ("agent", "rendezvous host")
VICTIMS = (*RANKS, "loader worker", "fork server", "launcher", *MACHINES)

SIGNALS = ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGSTOP")
S3 = ("S3 503", "S3 reset", "S3 black-out", "S3 slow", "S3 truncated")
DISKS = ("full disk", "read-only disk")
FAULTS = (
    "exception",
    "sys.exit",
    *SIGNALS,
    "GIL held",
    "collective skipped",
    "SIGTERM ignored",
    *DISKS,
    "out of memory",
    "clock set back",
    *S3,
    "cut link",
)

BEFORE_STEP = ("import", "rendezvous", "process group", "first step")
SAVING = ("staging", "upload", "commit", "after commit")
PHASES = (*BEFORE_STEP, "mid-epoch", "validation", *SAVING, "exit")

HANG_S = 10.0
"""--hang-timeout of every launch."""

GRACE_S = 3.0
"""--grace of every launch."""

EXIT_CODE = 7
"""That of the fault ``sys.exit``."""

CODES = {"exception": 1, "sys.exit": EXIT_CODE, "SIGKILL": 137, "SIGSEGV": 139, "SIGABRT": 134, "out of memory": 137}

_SAID = {
    "exception": "RuntimeError: struck",
    "sys.exit": rf"called sys\.exit\({EXIT_CODE}\)",
    "SIGKILL": "killed by SIGKILL",
    "SIGSEGV": "killed by SIGSEGV",
    "SIGABRT": "killed by SIGABRT",
    "out of memory": "killed by SIGKILL",
}
_OWN = ("exception", "sys.exit", "GIL held", "collective skipped", "SIGTERM ignored")
_STILL = ("SIGSTOP", "GIL held")
_NOTICE_S = 15.0
_LOST_S = 60.0


@dataclass(frozen=True)
class Cell:
    """A fault, whom it befalls, and when."""

    fault: str
    victim: str
    phase: str

    @classmethod
    def parse(cls, text: str) -> Cell:
        """The reverse of ``str``.

        Raises:
            ValueError: there is no such cell.
        """
        cell = cls(*(part.strip() for part in text.split("/")))
        for word, known in ((cell.fault, FAULTS), (cell.victim, VICTIMS), (cell.phase, PHASES)):
            if word not in known:
                raise ValueError(f"{word!r} is none of {', '.join(known)}")
        return cell

    def __str__(self) -> str:
        return f"{self.fault} / {self.victim} / {self.phase}"

    @property
    def rank(self) -> int:
        """The rank that the fault befalls or hits hardest."""
        return 1 if self.victim in ("rank 1", "agent") else 0

    @property
    def nodes(self) -> int:
        """How many machines it takes."""
        return 2 if self.victim in MACHINES else 1

    @property
    def storage(self) -> Literal["folder", "disk", "s3"]:
        """What the run is kept on: the test's folder, a small disk of its own, or S3."""
        return "s3" if self.fault in S3 else "disk" if self.fault in DISKS else "folder"

    @property
    def max_restarts(self) -> int:
        """What the launch may do by itself. A disk that stays read-only fails every start after a minute."""
        return 0 if self.fault in DISKS else 2


@dataclass(frozen=True)
class Expected:
    """What must come of a cell, before the run is finished to the same bits in any case.

    ==========  ==================================================================================
    goes on     the launch ends with 0 and has restarted nothing
    restarts    it restarts the workers, and ends with 0
    ends        it ends with the fault's own exit code; the same command finishes the run
    dies        the launcher is killed; everything of it is gone, and the same command finishes the run
    stops       it was told to stop, and ends with 143 in time
    rejoins     the machine is lost; when it is back, both finish the run
    ==========  ==================================================================================
    """

    outcomes: tuple[Outcome, ...]
    exit_code: int = 0
    rank: int | None = None
    """Whom the report must blame; None where no rank is to blame."""

    says: str = ""
    """A regular expression for the launcher's words about it."""

    within_s: float = _NOTICE_S
    """From the fault to these words, or to the end."""


def every_cell() -> list[Cell]:
    """The whole product, cells that cannot be included."""
    return [Cell(*words) for words in itertools.product(FAULTS, VICTIMS, PHASES)]


def possible() -> list[Cell]:
    """The cells that are run."""
    return [cell for cell in every_cell() if excluded(cell) is None]


def excluded(cell: Cell) -> str | None:
    """Why a cell cannot be, or would say nothing that another does not say; None if it is to be run."""
    return _not_of_the_victim(cell) or _not_in_the_phase(cell) or _not_in_this_phase(cell)


def _not_of_the_victim(cell: Cell) -> str | None:
    fault, victim = cell.fault, cell.victim
    is_script = victim in (*RANKS, "loader worker")
    if fault in _OWN and not is_script:
        return f"the {victim} runs no code of the script's, which alone can do this"
    if fault == "collective skipped" and victim == "loader worker":
        return "a loader worker takes part in no collective"
    if fault == "out of memory" and not is_script:
        return "the kernel's out-of-memory killer is a SIGKILL, which is tried"
    if fault == "cut link" and victim not in MACHINES:
        return "processes of one machine have no link between them"
    if fault == "clock set back" and victim not in (*RANKS, "launcher"):
        return "a clock is a process's (tried on the ranks) or its whole machine's (tried on the launcher)"
    if fault in (*DISKS, *S3) and victim != "rank 0":
        return "rank 0 alone touches the storage"
    return None


def _not_in_the_phase(cell: Cell) -> str | None:
    fault, victim, phase = cell.fault, cell.victim, cell.phase
    if phase == "rendezvous" and victim not in MACHINES:
        return "on one machine the rendezvous is a call within the launcher, before which there is no worker"
    if phase == "rendezvous" and fault in ("SIGSTOP", "cut link"):
        return "a machine that is not there yet is what the rendezvous waits for"
    if victim == "loader worker" and phase in ("import", "process group", "exit"):
        return "no loader worker lives then"
    if victim == "loader worker" and phase in SAVING and fault not in SIGNALS:
        return "what a loader worker does goes by its batches, not by a save: only a signal can come just then"
    if fault in (*DISKS, *S3) and phase in ("process group", "exit"):
        return (
            "the storage is not touched then; what comes next is at `import`"
            if phase != "exit"
            else ("the run has let go of the storage by then")
        )
    if fault in DISKS and phase == "import":
        return "a disk that is full or read-only at the start is refused there; no run is under way"
    return None


def _not_in_this_phase(cell: Cell) -> str | None:
    fault, victim, phase = cell.fault, cell.victim, cell.phase
    if fault == "collective skipped" and phase not in ("first step", "mid-epoch", "validation", "staging"):
        return "there is no collective then"
    if victim == "rank 0" and fault in ("exception", "sys.exit") and phase in SAVING[1:]:
        return "no code of the script's runs on the thread that saves"
    if victim == "rank 1" and phase == "staging" and fault in _OWN and fault != "collective skipped":
        return "while rank 0 stages, the others wait for its word in C code: only a signal comes through"
    if victim == "rank 1" and phase == "staging" and fault in ("out of memory", "clock set back"):
        return "while rank 0 stages, the others wait for its word and run nothing"
    if fault in _STILL and victim in RANKS and phase == "exit":
        return "after train() a script may do anything for as long as it likes: nobody can tell that it hangs"
    if fault == "S3 truncated" and phase not in SAVING:
        return "what can be truncated is an upload"
    return None


def expected(cell: Cell) -> Expected:
    """What must come of a cell that is possible."""
    fault, victim = cell.fault, cell.victim
    if fault == "read-only disk":
        return Expected(("ends",), 1, 0, "Read-only file system", within_s=120)
    if fault in (*DISKS, *S3, "clock set back"):
        return Expected(("goes on",), within_s=120)
    if fault == "SIGTERM ignored":
        return Expected(("stops",), 143, within_s=GRACE_S + _NOTICE_S)
    if victim in MACHINES:
        return _expected_of_machine(cell)
    if victim == "launcher":
        return Expected(("goes on",)) if fault == "SIGSTOP" else Expected(("dies",), -_number(fault))
    if victim == "fork server":
        if fault == "SIGSTOP":
            return Expected(("goes on", "restarts"), within_s=HANG_S + _NOTICE_S)
        return Expected(("restarts",), 137, None, "killed together with the fork server")
    return _expected_of_worker(cell)


def _expected_of_machine(cell: Cell) -> Expected:
    if cell.phase == "rendezvous":
        return Expected(("dies",), -_number(cell.fault))
    return Expected(("rejoins",), within_s=_LOST_S)


def _expected_of_worker(cell: Cell) -> Expected:
    fault, is_early = cell.fault, cell.phase in BEFORE_STEP
    if fault == "collective skipped":
        return Expected(("restarts", "ends") if is_early else ("restarts",), within_s=HANG_S + _NOTICE_S)
    if fault in _STILL:
        return Expected(("restarts",), 124, cell.rank, "", within_s=HANG_S + _NOTICE_S)
    if cell.victim == "loader worker":
        says = "RuntimeError: struck" if fault == "exception" else "DataLoader worker .*(killed by signal|unexpectedly)"
        if is_early and fault in SIGNALS:
            # What it has fetched ahead may carry its rank over the first step.
            return Expected(("ends", "restarts"), 1, cell.rank, says)
        return Expected(("restarts", "ends") if is_early else ("restarts",), 1, cell.rank, says)
    own_doing = fault not in ("SIGKILL", "out of memory")
    return Expected(
        ("restarts", "ends") if own_doing and is_early else ("restarts",), CODES[fault], cell.rank, _SAID[fault]
    )


def _number(fault: str) -> int:
    return {"SIGKILL": 9, "SIGSEGV": 11, "SIGABRT": 6}[fault]
