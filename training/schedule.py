"""Which objective is trained when: `sl:15`, `sl:50,rl:50`."""

import difflib
import re
from dataclasses import dataclass

ARMS = ("sl", "rl", "sl-adv", "rl-adv")


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
        match = re.fullmatch(r"\s*([a-z-]+):(\d+)\s*", part)
        if match is None or int(match[2]) < 1:
            raise ValueError(f"schedule {schedule!r} has {part!r}, expected objective:epochs, such as 'sl:15'")
        if match[1] not in ARMS:
            near = difflib.get_close_matches(match[1], ARMS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"schedule {schedule!r} has objective {match[1]!r}, expected one of {', '.join(ARMS)}{hint}"
            )
        phases.append(Phase(match[1], int(match[2])))
    return tuple(phases)


def label(schedule: str) -> str:
    """The arm as papers write it: SL, RL, SL-adv, RL-adv, and SL, RL for one phase after the other."""
    return ", ".join(phase.objective.upper() + ("-adv" if phase.is_adversarial else "") for phase in parse(schedule))
