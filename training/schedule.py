"""Which objective is trained when: `sl:15`, `sl:50,rl:50`, `sl>rl:100`, `lq:100`."""

import difflib
import re
from dataclasses import dataclass

ARMS = ("sl", "rl", "sl-adv", "rl-adv")  # of the study
CONTROLS = ("exact", "lq", "sl>rl", "sl>exact")
KNOWN = (*ARMS, *CONTROLS, *(f"{arm}-adv" for arm in CONTROLS))
WRITTEN = {"sl": "SL", "rl": "RL", "exact": "exact", "lq": "Lq"}


@dataclass(frozen=True)
class Phase:
    """Some epochs of one objective, on clean images alone or on attacked ones too."""

    arm: str
    epochs: int

    @property
    def objective(self) -> str:
        """The loss that is trained, whatever the images."""
        return self.arm.removesuffix("-adv")

    @property
    def is_adversarial(self) -> bool:
        """Attacked images are trained on beside the clean ones."""
        return self.arm.endswith("-adv")


def parse(schedule: str) -> tuple[Phase, ...]:
    """Read a schedule; raises ValueError naming the phase that is wrong and the nearest objective."""
    phases = []
    for part in schedule.split(","):
        match = re.fullmatch(r"\s*([a-z>-]+):(\d+)\s*", part)
        if match is None or int(match[2]) < 1:
            raise ValueError(f"schedule {schedule!r} has {part!r}, expected objective:epochs, such as 'sl:15'")
        _check(match[1], f"schedule {schedule!r} has objective")
        phases.append(Phase(match[1], int(match[2])))
    return tuple(phases)


def label(schedule: str) -> str:
    """The arm as papers write it: SL, RL, SL-adv, RL-adv, exact, Lq, SL>RL; SL, RL for one phase after the other."""
    return ", ".join(_written(phase) for phase in parse(schedule))


def complete(schedule: str, epochs: dict[str, int]) -> str:
    """Give each phase that has no number of epochs the arm's usual one; raises ValueError for an unknown arm."""
    phases = []
    for part in (part.strip() for part in schedule.split(",")):
        if ":" not in part:
            _check(part, f"schedule {schedule!r} has objective", tuple(epochs))
        phases.append(part if ":" in part else f"{part}:{epochs[part]}")
    return ",".join(phases)


def place(phase: Phase) -> tuple[bool, int]:
    """Where a phase's arm stands in tables and legends: clean arms first, controls behind the arms of the study."""
    return phase.is_adversarial, KNOWN.index(phase.objective)


def at(phases: tuple[Phase, ...], epoch: int) -> tuple[Phase, int]:
    """The phase that an epoch (counted from 0) belongs to, and its place within the phase."""
    for phase in phases:
        if epoch < phase.epochs:
            return phase, epoch
        epoch -= phase.epochs
    raise IndexError(f"epoch lies {epoch} beyond the end of the schedule")


def _written(phase: Phase) -> str:
    return ">".join(WRITTEN[name] for name in phase.objective.split(">")) + ("-adv" if phase.is_adversarial else "")


def _check(arm: str, where: str, known: tuple[str, ...] = KNOWN) -> None:
    if arm not in known:
        near = difflib.get_close_matches(arm, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where} {arm!r}, expected one of {', '.join(known)}{hint}")
