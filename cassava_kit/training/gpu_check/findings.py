"""What a GPU check found, and the file that it leaves, `gpu.json`: `GpuReport`, `read_gpu_report`, `format_report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cassava_kit.errors import UserError, format_errors
from cassava_kit.files import KIT_VERSION, write_text

GPU_FILE = "gpu.json"
GPU_FILE_VERSION: Literal[1] = 1
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Checked(BaseModel):
    """A part of the file: no further keys, no values of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Bound(Checked):
    """What one of a row's values must reach, or not exceed."""

    name: str
    at_least: Finite | None = None
    at_most: Finite | None = None

    def holds(self, value: float | str) -> bool:
        """Return whether a value is a number within the bound."""
        if isinstance(value, str):
            return False
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        ends = {"at least": self.at_least, "at most": self.at_most}
        return " and ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None)


class MeasuredRow(Checked):
    """One thing that was measured: its values by name, with their unit in the name, and the bounds on them."""

    what: str
    values: dict[str, Finite | str]
    bounds: tuple[Bound, ...] = ()

    @property
    def missed(self) -> list[str]:
        """The bounds that do not hold, in words."""
        return [
            f"{self.what}: {bound.name} must be {bound}, got {_shown(self.values.get(bound.name, 'nothing'))}"
            for bound in self.bounds
            if not bound.holds(self.values.get(bound.name, "nothing"))
        ]


class StepSpeed(Checked):
    """Training images a second of one GPU in a loop written by hand, on data in its memory."""

    model: str
    model_args: dict[str, Any]
    image_size: int = Field(ge=1)
    precision: Literal["32-true", "16-mixed"]
    images_per_second: Finite = Field(gt=0)


class PartResult(Checked):
    """One part of the check. `left_out` names what the time did not allow; `reason` why it failed or was skipped."""

    name: str
    status: Literal["passed", "missed", "failed", "skipped"]
    seconds: Finite = Field(ge=0)
    reason: str = ""
    rows: tuple[MeasuredRow, ...] = ()
    left_out: tuple[str, ...] = ()
    speeds: tuple[StepSpeed, ...] = ()


class GpuReport(Checked):
    """The whole file. `device` is what the driver calls the card; with `stand_in` a CPU took its place."""

    version: Literal[1] = GPU_FILE_VERSION
    kit_version: str = KIT_VERSION
    device: str
    n_devices: int = Field(ge=1)
    stand_in: bool
    memory_gb: Finite
    cores: int = Field(ge=1)
    versions: dict[str, str]
    minutes: Finite = Field(gt=0)
    seconds: Finite = Field(ge=0)
    finished: bool = False
    parts: tuple[PartResult, ...] = ()

    @property
    def speeds(self) -> list[StepSpeed]:
        """The measured training speeds of all parts."""
        return [speed for part in self.parts for speed in part.speeds]

    @property
    def exit_code(self) -> int:
        """0 where every part that ran passed, and one did; else 1."""
        statuses = {part.status for part in self.parts}
        return int(bool(statuses & {"failed", "missed"}) or "passed" not in statuses)

    @property
    def verdict(self) -> str:
        """One line: which parts passed, missed a bound, failed or were skipped."""
        by_status: dict[str, list[str]] = {}
        for part in self.parts:
            by_status.setdefault(part.status, []).append(part.name)
        words = {"passed": "passed", "missed": "missed a bound", "failed": "failed", "skipped": "no time for"}
        told = "; ".join(f"{text}: {', '.join(by_status[key])}" for key, text in words.items() if key in by_status)
        stand_in = ", which stands in for a GPU: speeds are not judged" if self.stand_in else ""
        return f"{'OK' if not self.exit_code else 'NOT OK'} on {self.device}{stand_in}. {told or 'nothing was checked'}"


def write_gpu_report(path: Path, report: GpuReport) -> None:
    """Write the file, whole or not at all."""
    write_text(path, report.model_dump_json(indent=2) + "\n")


def read_gpu_report(path: str | Path) -> GpuReport:
    """Read the file that `gpu-check` left.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is damaged, of another version, or no such file at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; `cassava-kit gpu-check` makes {GPU_FILE}")
    try:
        return GpuReport.model_validate_json(path.read_bytes())
    except ValidationError as error:
        other = next((item["input"] for item in error.errors() if item["loc"] == ("version",)), None)
        if other is not None:
            why = f"has version {other!r}, this kit reads {GPU_FILE_VERSION}"
        else:
            why = f"is not what gpu-check writes ({format_errors(error)[:300]})"
        raise UserError(f"{path} {why}; run gpu-check again") from None


def format_report(report: GpuReport) -> str:
    """Return the table: a line a row of each part, with its values, its bounds and whether they hold."""
    lines = [f"{report.device}, {report.n_devices} of them, {report.memory_gb:.0f} GB, {report.cores} cores"]
    width = max((len(row.what) for part in report.parts for row in part.rows), default=0)
    for part in report.parts:
        reason = f": {part.reason}" if part.reason else ""
        lines.append(f"{part.name}  {part.status.upper()} in {part.seconds:.0f} s{reason}")
        for row in part.rows:
            bounds = {bound.name: f" ({bound}{'' if bound.holds(row.values.get(bound.name, '')) else ', MISSED'})"
                      for bound in row.bounds}  # fmt: skip
            values = "  ".join(f"{name} {_shown(value)}{bounds.get(name, '')}" for name, value in row.values.items())
            lines.append(f"  {row.what:{width}}  {values}")
        if part.left_out:
            lines.append(f"  no time for {', '.join(part.left_out)}")
    return "\n".join(lines)


def _shown(value: float | str) -> str:
    """Return a value as the table has it: four digits, no exponent for what is large."""
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
