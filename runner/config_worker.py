"""Keys of the ``worker`` section that every worker has, and those of all whose trainings are processes we watch."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from runner.config_types import FilePath, Seconds, Section, Words

DEFAULT_TIMEOUT = 7200  # seconds, the predecessor's default for conda and dask


class WorkerSection(Section):
    """Keys of the ``worker`` section that every worker has."""

    worker_type: str = Field(
        description="`local`, `conda`, `aws`, `dask`, or your own worker as `package.module:Class` or entry point name."
    )
    timeout: Seconds = Field(
        DEFAULT_TIMEOUT, description="Time limit of one training in seconds; the submission is then killed (code 124)."
    )

    one_of: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Groups of keys of which exactly one must be set."""

    in_section: ClassVar[Mapping[str, str]] = {}
    """Other names that keys may have under ``worker:``, where they cannot be taken for the event's own."""

    @classmethod
    def conflicts(cls, keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield each key that does not fit the others, with what is wrong; ``keys`` as they stand in the file."""
        for group in cls.one_of:
            first, *others = [key for key in group if keys.get(key) is not None] or [""]
            if not first:
                yield group[0], f"is missing; set it, or {' or '.join(group[1:])} in its place"
            for other in others:
                yield other, f"cannot stand beside {first}; keep one of the two"


class ProcessSection(WorkerSection):
    """Keys of workers whose trainings are processes that ramp-cloud itself watches."""

    max_output_mb: float = Field(
        5000, gt=0, allow_inf_nan=False, description="A submission that writes more (MB of 10⁶ bytes) is killed."
    )
    max_log_mb: float = Field(
        20, ge=0.1, allow_inf_nan=False, description="A longer log (MB) loses its middle; head and tail are kept."
    )


class FencedSection(ProcessSection):
    """Keys of workers whose trainings share a machine with other things, and are started from a preloader."""

    preload: bool = Field(
        default=True,
        description="Start submissions from a process that has imported the kit's packages already. Linux; elsewhere, "
        "and where packages cannot live with it, each submission imports for itself.",
    )
    fence: bool | None = Field(
        None,
        description="Fence submissions in: no network, no files but the kit, the data and their own. `true`: nothing "
        "is trained where that cannot be had; `false`: no fence. Default: as far as the machine allows it.",
    )
    fence_readable: Annotated[list[FilePath], Words("a list of files and folders")] = Field(
        [], description="More files and folders that fenced submissions may read, such as pretrained weights."
    )
    max_memory_mb: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Memory of a submission's processes, together (MB). Default: all."
    )
    max_processes: int = Field(
        1000, ge=50, le=100_000, description="Processes and threads that a fenced submission may have at a time."
    )
