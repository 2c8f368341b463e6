"""Energy of the processor, from Linux: the counters of RAPL under /sys/class/powercap.

Intel's and AMD's packages have them. Since 2020 only the superuser may read them by default (CVE-2020-8694), and
virtual machines have none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(slots=True)
class Rapl:
    """The packages of this machine. The counters are those of the packages, for all their users.

    Args:
        root: the kernel's folder of them.
    """

    root: Path = POWERCAP
    _last: dict[Path, int] = field(default_factory=dict)
    _microjoules: int = 0

    def joules(self) -> float | None:
        """Energy of all packages since the first call; None if there is no counter or it may not be read.

        A counter wraps to zero after minutes to hours: call it more often than that.
        """
        # A zone such as "intel-rapl:0" is a package; those below it, such as "intel-rapl:0:0", are parts of it. On
        # Intel client machines one is called "psys": the whole platform, including the package.
        zones = [zone for zone in sorted(self.root.glob("intel-rapl:*")) if zone.name.count(":") == 1]
        if not zones:
            return None
        try:
            packages = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
            if not packages:
                return None
            for zone in packages:
                now = int((zone / "energy_uj").read_text())
                before = self._last.setdefault(zone, now)
                if now < before:
                    before -= int((zone / "max_energy_range_uj").read_text())
                self._microjoules += now - before
                self._last[zone] = now
        except (OSError, ValueError):
            return None
        return self._microjoules / 1e6

    def why_not(self) -> str | None:
        """Why there is no energy to read, in a few words; None if there is."""
        if self.joules() is not None:
            return None
        if any(self.root.glob("intel-rapl:*")):
            return "this user may not read the kernel's RAPL counters"
        return "the kernel shows no RAPL counter, as in most virtual machines"
