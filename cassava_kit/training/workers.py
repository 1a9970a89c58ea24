"""Jobs in processes of their own, several at once, on one display. Entry point: `run_jobs`.

A process imports torch once and takes one job after the other. Whatever ends the program ends them: Ctrl-C and SIGTERM
at once, a program that was killed by its closed pipe.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import connection, get_context
from typing import Any

from cassava_kit.data.progress import Display, show_progress, use_display
from cassava_kit.errors import Stopped, UserError

WARM_UP = "warm-up"
PATIENCE_SECONDS = 5.0  # for a process that is told to end, before it is killed
WAKE_SECONDS = 1.0  # a signal that comes just before the system sleeps is seen when it wakes


@dataclass(frozen=True)
class Job:
    """A call that can be made in another process: `run` is an importable function. `after` names jobs it waits for."""

    name: str
    run: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    after: tuple[str, ...] = ()


@dataclass
class Progress:
    """What has become of the jobs: results and errors by name; `ended` is called with each result."""

    jobs: Sequence[Job]
    ended: Callable[[str, Any], None]
    results: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, BaseException] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    epochs: dict[str, int] = field(default_factory=dict)

    def take(self) -> Job | None:
        """Return the next job that can begin; None where there is none now. What waits for a failed job fails too."""
        for job in self.jobs:
            if job.name in self.taken:
                continue
            if lost := [name for name in job.after if name in self.errors]:
                self.taken.add(job.name)
                self.errors[job.name] = UserError(f"it needs {lost[0]}, which failed")
            elif all(name in self.results for name in job.after):
                self.taken.add(job.name)
                return job
        return None

    def end(self, name: str, result: Any) -> None:
        """Note a job's result."""
        self.results[name] = result
        self.ended(name, result)

    @property
    def done(self) -> bool:
        """Whether every job has ended."""
        return len(self.results) + len(self.errors) == len(self.jobs)


def run_jobs(
    jobs: Sequence[Job], at_once: int, *, ended: Callable[[str, Any], None] = lambda name, result: None
) -> dict[str, Any]:
    """Run jobs and return their results by name: one after the other in this process, or several in others at once.

    The order is the one given, as far as `after` and free processes allow. A job that fails does not end the others.

    Raises:
        Stopped: The user stopped the program; all processes have ended. The message says after which epochs.
        UserError: Jobs failed by a mistake of the user's; each is named.
        RuntimeError: Jobs failed by a bug; each is named, with its traceback.
    """
    progress = Progress(jobs, ended)
    with show_progress() as display:
        if at_once == 1:
            _run_here(progress, display)
        else:
            _run_there(progress, display, min(at_once, len(jobs)))
    raise_failed(progress.errors, len(jobs))
    return progress.results


def _run_here(progress: Progress, display: Display) -> None:
    """Run the jobs in this process."""
    while (job := progress.take()) is not None:
        try:
            result = job.run(*job.arguments)
        except Stopped as stopped:
            text = str(stopped) if str(stopped) != "stopped" else f"stopped in {job.name}; the same command goes on"
            raise Stopped(text, number=stopped.number) from None
        except Exception as error:
            progress.errors[job.name] = error
            _tell_failure(display, job.name, error, len(progress.jobs))
        else:
            progress.end(job.name, result)


def _run_there(progress: Progress, display: Display, at_once: int) -> None:
    """Run the jobs in `at_once` processes, which have ended when this returns or raises."""
    workers = [_ready.pop() if _ready else Worker() for _ in range(at_once)]
    try:
        while not progress.done:
            for worker in workers:
                if worker.job is None and (job := progress.take()) is not None:
                    worker.begin(job)
            busy = {worker.pipe: worker for worker in workers if worker.job is not None}
            for pipe in connection.wait(list(busy), WAKE_SECONDS) if busy else []:
                busy[pipe].listen(progress, display)
    except (Stopped, KeyboardInterrupt) as stopped:
        text = stopped_after(
            {worker.job: progress.epochs.get(worker.job, 0) for worker in workers if worker.job in progress.taken}
        )
        raise type(stopped)(text, **({"number": stopped.number} if isinstance(stopped, Stopped) else {})) from None
    finally:
        for worker in workers:
            worker.tell_to_end()
        for worker in workers:
            worker.end()


# Processes that have been started, and have no job yet.
_ready: list[Worker] = []


@contextmanager
def ready_workers(number: int, module: str) -> Iterator[None]:
    """Start processes that import a module meanwhile; `run_jobs` in the block takes them."""
    for _ in range(number):
        _ready.append(Worker())
        _ready[-1].begin(Job(WARM_UP, load, (module,)))
    try:
        yield
    finally:
        for worker in _ready:
            worker.tell_to_end()
        while _ready:
            _ready.pop().end()


def load(module: str) -> None:
    """Import a module; what fails in it fails again, and is said, in the job that needs it."""
    with suppress(ImportError):
        import_module(module)


class Worker:
    """A process that takes jobs; it is started with the first."""

    def __init__(self) -> None:
        self.job: str | None = None
        self.process: Any = None
        self.pipe: Any = None

    def begin(self, job: Job) -> None:
        """Hand over a job."""
        if self.process is None:
            context = get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=work, args=(other,))
            # Ctrl-C goes to every process of the terminal: these take no notice, and are told to end.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self.process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            other.close()
        self.job = job.name
        self.pipe.send((job.name, job.run, job.arguments))

    def listen(self, progress: Progress, display: Display) -> None:
        """Take one message: a part of the display, a result, an error, or the end of the process."""
        assert self.job is not None
        try:
            kind, *rest = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
            kind, rest = "failed", [UserError(f"its process ended {how}; where memory was short, --jobs 1 needs less")]
            self.pipe.close()
            self.process = None
        if self.job == WARM_UP:
            self.job = None
        elif kind == "ended":
            name, self.job = self.job, None
            progress.end(name, rest[0])
        elif kind == "failed":
            name, self.job = self.job, None
            progress.errors[name] = rest[0]
            _tell_failure(display, name, rest[0], len(progress.jobs))
        else:
            if kind == "epoch":
                progress.epochs[self.job] = rest[1]
            getattr(display, kind)(*rest)

    def tell_to_end(self) -> None:
        """Ask the process to end: one at work by SIGTERM, an idle one by the end of its pipe."""
        if self.process is not None:
            self.pipe.close()
            if self.job is not None:
                self.process.terminate()

    def end(self) -> None:
        """Wait for the process, and kill it where it does not end by itself."""
        if self.process is not None:
            self.process.join(PATIENCE_SECONDS)
            self.process.kill()
            self.process.join()
            self.process.close()


@dataclass
class RemoteDisplay:
    """The display of the program that gave the job, through a pipe; labels of its own begin with the job's name."""

    pipe: Any
    job: str

    def add(self, label: str, total: float, done: float = 0) -> None:
        """Begin a task."""
        self.pipe.send(("add", self._own(label), total, done))

    def advance(self, label: str, steps: float = 1) -> None:
        """Count steps."""
        self.pipe.send(("advance", self._own(label), steps))

    def epoch(self, label: str, done: int, epochs: int, figure: str) -> None:
        """Say that an epoch has ended."""
        self.pipe.send(("epoch", self._own(label), done, epochs, figure))

    def remove(self, label: str) -> None:
        """End a task."""
        self.pipe.send(("remove", self._own(label)))

    def tell(self, text: str) -> None:
        """Print a line."""
        self.pipe.send(("tell", text))

    def _own(self, label: str) -> str:
        return label if label == self.job else f"{self.job}: {label}"


def work(pipe: Any) -> None:
    """Take jobs from a pipe until it ends; the function of each process."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number=number)

    signal.signal(signal.SIGTERM, stop)  # files that are half written are cleaned up
    try:
        while True:
            name, run, arguments = pipe.recv()
            with use_display(RemoteDisplay(pipe, name)):
                try:
                    result = run(*arguments)
                except (BrokenPipeError, ConnectionResetError):
                    return
                except Exception as error:
                    error.add_note("".join(traceback.format_exception(error)))
                    pipe.send(("failed", _sendable(error)))
                else:
                    pipe.send(("ended", result))
    except (Stopped, EOFError, BrokenPipeError, ConnectionResetError):
        return


def _sendable(error: Exception) -> Exception:
    """Return the error, or one with its text where it cannot be made again in another process."""
    from multiprocessing.reduction import ForkingPickler

    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    return error


def _tell_failure(display: Display, name: str, error: BaseException, n_jobs: int) -> None:
    """Print at once that one of several jobs has failed."""
    if n_jobs > 1:
        first = next(iter(str(error).splitlines()), "")
        display.tell(f"{name} failed: {first or type(error).__name__}")


def stopped_after(epochs: Mapping[str, int]) -> str:
    """Return what is said of jobs that were stopped, by their finished epochs."""
    after = [f"{name} after epoch {epoch}" for name, epoch in epochs.items() if epoch]
    early = [name for name, epoch in epochs.items() if not epoch]
    parts = [*after, *([f"{', '.join(early)} before the first epoch ended"] if early else [])]
    return f"stopped {', '.join(parts)}; the same command goes on" if parts else "stopped; the same command goes on"


def raise_failed(errors: Mapping[str, BaseException], n_jobs: int) -> None:
    """Raise what failed: the error itself where all jobs failed alike, else one that names each."""
    if not errors:
        return
    by_text: dict[str, list[str]] = {}
    for name, error in errors.items():
        by_text.setdefault(str(error), []).append(name)
    if len(errors) == n_jobs and len(by_text) == 1:
        raise next(iter(errors.values()))
    rest = n_jobs - len(errors)
    tail = f"; the other {rest} ended, and the same command takes them as they are" if rest else ""
    text = "; ".join(f"{', '.join(names)} failed: {error}" for error, names in by_text.items())
    if all(isinstance(error, UserError) for error in errors.values()):
        raise UserError(f"{text}{tail}")
    notes = "\n".join(note for error in errors.values() for note in getattr(error, "__notes__", ()))
    raise RuntimeError(f"{text}{tail}\n{notes}".rstrip()) from next(iter(errors.values()))
