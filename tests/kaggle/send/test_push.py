"""The whole way to Kaggle and back, by the real client, against the stub on this machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from kaggle_stub import KEY, USER, Dataset, Stub, environment, running
from processes import run_python, start_python

from cassava_kit.files import read_json
from cassava_kit.kaggle.pack.bundle import Bundle, package_kernel
from cassava_kit.kaggle.pack.kernels import Changes, find_kernel
from cassava_kit.kaggle.send.job import JOURNAL
from cassava_kit.kaggle.send.plan import planned_calls

# Every test runs the real client in a process of its own, some several times.
pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[3]
RUN = {"error": None, "prior_alone": False, "left_out": {}, "members_used": [{"member": "vit_a"}], "images_failed": {}}
KIT, WEIGHTS = f"{USER}/cassava-kit", f"{USER}/cassava-kit-weights"
KERNEL = f"{USER}/cassava-kit-ensemble-submission"
# Waits end after so many polls, whatever time a loaded machine takes for them: the clock counts the pauses alone.
SCRIPT = """
import os
import sys
import time
from pathlib import Path
from cassava_kit.kaggle.pack.bundle import read_bundle
from cassava_kit.kaggle.pack.kernels import find_kernel
from cassava_kit.cli.kaggle import push_bundle
from cassava_kit.kaggle.send.history import compare_public
from cassava_kit.kaggle.send.ledger import record_submission
from cassava_kit.kaggle.send.push import fetch_pushed
from cassava_kit.kaggle.send.remote import KaggleError
from cassava_kit.kaggle.send.retry import WaitPolicy
home, name, action = sys.argv[1:]
pauses = []
def sleep(seconds):
    pauses.append(seconds)
    time.sleep(seconds / 5)
clock = {"sleep": sleep, "clock": lambda: sum(pauses)}
waits = WaitPolicy(first=0.05, longest=0.2, attempts=4, outage=5, dataset=2, kernel=3, score=3, **clock)
try:
    bundle = read_bundle(home, find_kernel(name))
    if action == "fetch":
        print(fetch_pushed(bundle, waits=waits))
    else:
        yes = (lambda question: False) if os.environ.get("KEEP_LAST") else lambda question: True
        send, again = action.startswith("submit"), "again" in action
        pushed = push_bundle(bundle, send=send, again=again, waits=waits, confirm=yes)
        if pushed.submission:
            ledger = Path(home) / "submissions.json"
            file = pushed.output / "submission.csv"
            print(compare_public(ledger, record_submission(ledger, bundle, pushed.submission, file=file)))
except (KaggleError, ValueError) as error:
    print("error:", error)
    sys.exit(2)
"""


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running(
        Stub(output={"submission.csv": b"image_id,label\n1.jpg,3\n", "run.json": json.dumps(RUN).encode()})
    ) as one:
        yield one


class Traveller:
    """A user who calls push and submit again and again, in processes of their own."""

    def __init__(self, bundle: Bundle, stub: Stub, home: Path) -> None:
        self.bundle, self.stub, self.home = bundle, stub, home
        self.printed = ""

    def go(self, action: str = "submit", **variables: str) -> tuple[int, str]:
        """Exit code and everything printed; what the stub saw before is forgotten."""
        self.stub.seen.clear()
        variables = environment(self.stub, self.home, os.environ["PATH"]) | variables
        given = ["-c", SCRIPT, self.bundle.home, self.bundle.kernel.name, action]
        done = run_python(given, cwd=REPOSITORY, env=variables)
        self.printed += done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        assert KEY not in done.stdout + done.stderr
        return done.returncode, done.stdout

    def fails(self, message: str, action: str = "submit") -> str:
        """Call, and hold the one line of the error against `message`."""
        code, printed = self.go(action)
        error = printed.splitlines()[-1]
        assert code == 2 and error.startswith("error: ") and message in error, printed
        return error


@pytest.fixture
def traveller(bundle: Bundle, stub: Stub, tmp_path: Path) -> Traveller:
    return Traveller(bundle, stub, tmp_path / "home")


def test_the_whole_way(traveller: Traveller, stub: Stub) -> None:
    code, printed = traveller.go()
    assert code == 0, printed
    assert "public score 0.9012" in printed
    for dataset, folder in ((KIT, traveller.bundle.kit_dir), (WEIGHTS, traveller.bundle.weights_dir)):
        sent = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "dataset-metadata.json"}
        assert stub.datasets[dataset].files == sent
    (kernel,) = stub.calls("SaveKernel")
    assert kernel["slug"] == KERNEL
    assert kernel["enableInternet"] is False and kernel["enableGpu"] is True and kernel["isPrivate"] is True
    assert kernel["machineShape"] == "NvidiaTeslaT4"
    assert kernel["datasetDataSources"] == [KIT, WEIGHTS]
    assert kernel["competitionDataSources"] == ["cassava-leaf-disease-classification"]
    assert json.loads(kernel["text"])["cells"] == json.loads(traveller.bundle.notebook.read_text())["cells"]
    (submission,) = stub.calls("CreateCodeSubmission")
    assert submission["competitionName"] == "cassava-leaf-disease-classification"
    assert (submission["kernelOwner"], submission["kernelSlug"]) == tuple(KERNEL.split("/"))
    assert (submission["kernelVersion"], submission["fileName"]) == (1, "submission.csv")
    order = [name for name, _ in stub.seen]
    assert order.index("SaveKernel") > max(i for i, name in enumerate(order) if name == "CreateDataset")
    planned = {call.split()[0] for call in planned_calls(traveller.bundle, submit=True)}
    assert planned == set(stub.counts) - {"PUT", "GET"}


def test_a_second_call_repeats_nothing(traveller: Traveller, stub: Stub) -> None:
    traveller.go()
    code, printed = traveller.go()
    assert code == 0 and "public score 0.9012" in printed
    made = ("StartBlobUpload", "PUT", "CreateDataset", "CreateDatasetVersion", "SaveKernel", "CreateCodeSubmission")
    assert not [name for name in made if stub.counts[name]]


def test_without_its_journal_it_asks_kaggle(traveller: Traveller, stub: Stub) -> None:
    traveller.go()
    (traveller.bundle.kit_dir.parent / JOURNAL).unlink()
    traveller.go()
    made = ("StartBlobUpload", "CreateDatasetVersion", "SaveKernel", "CreateCodeSubmission")
    assert [stub.counts[method] for method in made] == [0, 0, 0, 0]


def test_a_submission_on_a_further_page_is_found(traveller: Traveller, stub: Stub) -> None:
    traveller.go()
    (traveller.bundle.home / JOURNAL).unlink()
    stub.submissions += [{"ref": 2000 + n, "description": f"another {n}", "polls": 5} for n in range(30)]
    code, printed = traveller.go()
    assert code == 0 and "was submitted already" in printed, printed
    assert not stub.counts["CreateCodeSubmission"] and stub.counts["ListSubmissions"] >= 2


def test_a_submission_that_kaggle_no_longer_lists_is_not_made_again(traveller: Traveller, stub: Stub) -> None:
    traveller.go()
    stub.submissions.clear()
    code, printed = traveller.go()
    assert code == 0 and "public score 0.9012" in printed, printed
    assert not stub.counts["CreateCodeSubmission"]


def test_a_later_build_becomes_a_new_version_and_the_old_one_stays(traveller: Traveller, stub: Stub) -> None:
    stub.datasets[KIT] = Dataset({"KIT_MANIFEST.json": b'{"build_id": "old"}'})
    stub.processing = 3
    code, printed = traveller.go()
    assert code == 0, printed
    (version,) = stub.calls("CreateDatasetVersion")
    assert not version["body"].get("deleteOldVersions")
    assert stub.datasets[KIT].version == 2


@pytest.mark.parametrize(
    ("method", "answers"),
    [
        ("GetDatasetStatus", [(503, {"code": 503, "message": "Service Unavailable"})]),
        ("GetKernelSessionStatus", [(429, {"code": 429, "message": "Too Many Requests"})] * 2),
        ("SaveKernel", [(500, {"code": 500, "message": "Internal"})]),
        ("SaveKernel", ["lost before"]),
        ("StartBlobUpload", [(429, {"code": 429, "message": "Too Many Requests"})]),
        ("CreateCodeSubmission", ["lost before"]),
        ("ListKernelSessionOutput", ["lost before"]),
        ("PUT", ["lost before"]),
        ("PUT", [(500, {"message": "Internal"})]),
        ("GET", ["lost before"]),
        ("ListSubmissions", [(502, {"code": 502, "message": "Bad Gateway"})]),
        ("CreateDataset", [(503, {"code": 503, "message": "Service Unavailable"})]),
    ],
)
def test_what_passes_is_waited_out(traveller: Traveller, stub: Stub, method: str, answers: list) -> None:  # type: ignore[type-arg]
    stub.instead[method] = answers
    code, printed = traveller.go()
    assert code == 0, printed
    assert len(stub.kernels[KERNEL]) == 1 and len(stub.submissions) == 1


def test_an_answer_that_is_lost_does_not_make_it_happen_twice(traveller: Traveller, stub: Stub) -> None:
    stub.datasets[WEIGHTS] = Dataset({"WEIGHTS_MANIFEST.json": b'{"build_id": "old"}'})
    made = ("CreateDataset", "CreateDatasetVersion", "SaveKernel", "CreateCodeSubmission")
    stub.instead = {method: ["lost after"] for method in made}
    code, printed = traveller.go()
    assert code == 0, printed
    assert [stub.counts[method] for method in made] == [1, 1, 1, 1]
    assert (stub.datasets[KIT].version, stub.datasets[WEIGHTS].version) == (1, 2)
    assert stub.calls("CreateCodeSubmission")[0]["kernelVersion"] == 1


def test_a_version_that_did_not_arrive_is_sent_again(traveller: Traveller, stub: Stub) -> None:
    stub.datasets[WEIGHTS] = Dataset({"WEIGHTS_MANIFEST.json": b'{"build_id": "old"}'})
    stub.instead["CreateDatasetVersion"] = ["lost before"]
    code, printed = traveller.go()
    assert code == 0, printed
    assert stub.counts["CreateDatasetVersion"] == 2 and stub.datasets[WEIGHTS].version == 2
    files = [path for _, folder in traveller.bundle.datasets for path in folder.iterdir()]
    assert stub.counts["StartBlobUpload"] == len(files) - 2, "no file is uploaded twice; two are metadata"


def test_a_crash_in_the_middle_goes_on_where_it_stopped(traveller: Traveller, stub: Stub) -> None:
    stub.instead["SaveKernel"] = [(500, {"code": 500, "message": "Internal"})] * 4
    traveller.fails("Kaggle does not answer as it should")
    stub.instead.clear()
    code, printed = traveller.go()
    assert code == 0, printed
    assert stub.counts["StartBlobUpload"] == 0 and len(stub.kernels[KERNEL]) == 1


def test_a_file_that_does_not_arrive_stops_before_the_dataset_is_made(traveller: Traveller, stub: Stub) -> None:
    """A file that Kaggle refuses is sent once."""
    stub.instead["PUT"] = [(400, {})] * 100
    code, printed = traveller.go()
    assert code == 2 and "HTTP 400" in printed and stub.counts["PUT"] == 1
    assert stub.counts["CreateDataset"] == 0 and KIT not in stub.datasets


@pytest.mark.parametrize(
    ("method", "reply", "message"),
    [
        (
            "SaveKernel",
            (200, {"error": "Maximum batch GPU session count of 2 reached."}),
            "two GPU sessions are already running",
        ),
        (
            "SaveKernel",
            (200, {"versionNumber": 1, "invalidCompetitionSources": ["cassava-leaf-disease-classification"]}),
            "accept its rules once: https://www.kaggle.com/competitions/cassava-leaf-disease-classification/rules",
        ),
        (
            "SaveKernel",
            (200, {"versionNumber": 1, "invalidDatasetSources": [KIT]}),
            "the dataset is not there or still processing",
        ),
        ("SaveKernel", (200, {"error": "Weekly GPU quota of 30.00 hours exceeded"}), "GPU quota is used up"),
        ("CreateDataset", (200, {"status": "error", "error": "Dataset creation error"}), "Dataset creation error"),
        (
            "CreateCodeSubmission",
            (403, {"code": 403, "message": "You must accept this competition's rules"}),
            "accept its rules once",
        ),
        (
            "CreateCodeSubmission",
            (400, {"code": 400, "message": "Submission limit of 5 per day reached"}),
            "today's submissions are used up",
        ),
    ],
)
def test_what_kaggle_refuses_is_named(
    traveller: Traveller, stub: Stub, method: str, reply: tuple, message: str
) -> None:  # type: ignore[type-arg]
    stub.instead[method] = [reply] * 5
    traveller.fails(message)
    if method == "SaveKernel":
        assert stub.counts["GetKernelSessionStatus"] == 0 and stub.counts["CreateCodeSubmission"] == 0


def test_a_quota_that_is_used_up_is_seen_before_the_push(traveller: Traveller, stub: Stub) -> None:
    used = (200, {"gpuQuota": {"timeUsed": "107900s", "totalTimeAllowed": "108000s"}})
    stub.instead["GetAcceleratorQuotaStatistics"] = [used] * 3
    traveller.fails("GPU quota is used up")
    assert stub.counts["SaveKernel"] == 0


def test_a_dataset_that_stays_in_processing(traveller: Traveller, stub: Stub) -> None:
    stub.processing = 10**6
    traveller.fails(f"{KIT} is still processing")
    stub.datasets[KIT].processing = 0
    stub.processing = 0
    code, printed = traveller.go()
    assert code == 0, printed
    assert KIT not in {f"{body['ownerSlug']}/{body.get('slug')}" for body in stub.calls("CreateDataset")}
    assert stub.counts["CreateDatasetVersion"] == 0


def test_a_stale_dataset_is_not_run(traveller: Traveller, stub: Stub) -> None:
    """Kaggle says ready, and still serves the version before."""
    traveller.go()
    stub.datasets[WEIGHTS].files = {"WEIGHTS_MANIFEST.json": b'{"build_id": "of another build"}'}
    stub.instead["CreateDatasetVersion"] = [(200, {"status": "ok"})]
    stub.kernels.clear()
    traveller.fails("stale")
    assert stub.counts["SaveKernel"] == 0


def test_a_finished_run_before_ours_is_not_submitted_in_its_place(traveller: Traveller, stub: Stub) -> None:
    """Asked without a version, Kaggle tells of the run before: complete."""
    stub.kernel_statuses = ["COMPLETE"]
    stub.version_statuses = {"v1": ["QUEUED", "RUNNING", "RUNNING", "COMPLETE"]}
    code, printed = traveller.go()
    assert code == 0, printed
    order = [name for name, _ in stub.seen]
    assert [body.get("versionLabel") for body in stub.calls("GetKernelSessionStatus")] == ["v1"] * 4
    assert {body.get("versionLabel") for body in stub.calls("ListKernelSessionOutput")} == {"v1"}
    assert order.index("CreateCodeSubmission") > max(i for i, name in enumerate(order) if "SessionStatus" in name)


@pytest.mark.parametrize(("left", "keep", "made"), [(2, "", 1), (2, "yes", 0), (1, "yes", 0), (0, "", 0)])
def test_a_submission_is_asked_for_before_anything_is_uploaded(
    traveller: Traveller, stub: Stub, left: int, keep: str, made: int
) -> None:
    stub.allowed_now = left
    code, printed = traveller.go(KEEP_LAST=keep)
    assert (f"submissions left today: {left}" if left else "submissions are used up") in printed
    assert (code == 0) == bool(made) and len(stub.submissions) == made
    assert bool(stub.datasets) == bool(made)


def test_after_a_submission_error_again_goes_on(traveller: Traveller, stub: Stub) -> None:
    stub.submission_error = "Notebook Timeout"
    traveller.fails("submit --again to run and submit this build once more")
    stub.submission_error, stub.kernel_statuses = "", ["COMPLETE"]
    code, printed = traveller.go("submit again")
    assert code == 0 and "public score" in printed, printed
    assert len(stub.submissions) == 2 and len(stub.kernels[KERNEL]) == 2 and not stub.counts["StartBlobUpload"]


def test_a_kernel_that_fails_shows_why(traveller: Traveller, stub: Stub) -> None:
    stub.kernel_statuses, stub.failure_message = ["RUNNING", "ERROR"], "Your notebook ran out of memory"
    stub.log = json.dumps([{"stream_name": "stderr", "time": 1, "data": f"line {i} {KEY}\n"} for i in range(60)])
    error = traveller.fails("ended with error: Your notebook ran out of memory")
    assert KERNEL in error
    assert "line 59 ***" in traveller.printed and "line 29 " not in traveller.printed
    assert stub.counts["CreateCodeSubmission"] == 0


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({}, "left no submission.csv"),
        ({"submission.csv": b"image_id,label\n1.jpg,7\n"}, "the label must be a whole number in 0..4, got '7'"),
        ({"submission.csv": b"id,label\n1.jpg,1\n"}, "must begin with the columns image_id,label"),
        (
            {
                "submission.csv": b"image_id,label\n1.jpg,1\n",
                "run.json": json.dumps(RUN | {"left_out": {"vit_b": "damaged"}}).encode(),
            },
            "not submitted: vit_b was left out: damaged",
        ),
    ],
)
def test_a_bad_output_is_not_submitted(
    traveller: Traveller, stub: Stub, output: dict[str, bytes], message: str
) -> None:
    stub.output = output
    traveller.fails(message)
    assert stub.counts["CreateCodeSubmission"] == 0


def test_a_submission_that_is_not_scored(traveller: Traveller, stub: Stub) -> None:
    stub.submission_error = "Notebook Timeout"
    traveller.fails("the submission was not scored: Notebook Timeout")


def test_wrong_credentials(traveller: Traveller, stub: Stub) -> None:
    code, printed = traveller.go(KAGGLE_KEY="another-key-of-eight")
    assert code == 2 and "credentials are refused" in printed and "another-key" not in printed


def test_no_credentials_at_all(traveller: Traveller, stub: Stub) -> None:
    variables = environment(stub, traveller.home, os.environ["PATH"])
    del variables["KAGGLE_USERNAME"], variables["KAGGLE_KEY"]
    given = ["-c", SCRIPT, traveller.bundle.home, traveller.bundle.kernel.name, "submit"]
    done = run_python(given, cwd=REPOSITORY, env=variables)
    assert done.returncode == 2 and "error: no Kaggle credentials" in done.stdout and done.stdout.count("\n") == 1
    assert not stub.seen


def test_somebody_elses_dataset(traveller: Traveller, stub: Stub) -> None:
    for folder in (traveller.bundle.kit_dir, traveller.bundle.weights_dir):
        path = folder / "dataset-metadata.json"
        path.write_text(path.read_text().replace("your-kaggle-name", "somebody-else"))
    traveller.fails(f"wrong owner: the bundle is for somebody-else, the credentials are {USER}'s")
    assert not stub.counts["StartBlobUpload"]


def test_a_tampered_bundle_is_not_uploaded(traveller: Traveller, stub: Stub) -> None:
    path = traveller.bundle.weights_dir / "vit_a-fold0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    traveller.fails("vit_a-fold0.safetensors is not the file that was packed")
    assert not stub.seen


def test_nothing_is_written_beside_the_bundle_that_holds_a_secret(traveller: Traveller, stub: Stub) -> None:
    traveller.go()
    folder = traveller.bundle.kit_dir.parent
    texts = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert not [path for path, content in texts.items() if KEY.encode() in content]
    assert read_json(folder / JOURNAL)["kernel"]["version"] == 1
    assert not [name for name, body in stub.seen if KEY in json.dumps(body)]


def test_a_submission_is_written_into_the_ledger_with_its_evidence(traveller: Traveller, stub: Stub) -> None:
    evidence = traveller.bundle.home / "evidence"
    evidence.mkdir()
    (evidence / "oof.csv").write_text("of this build")
    traveller.go()
    (evidence / "oof.csv").write_text("of a later one")
    traveller.go()
    (entry,) = read_json(traveller.bundle.home / "submissions.json")["submissions"]
    assert (entry["ref"], entry["public_score"], entry["members"]) == (1000, "0.9012", 2)
    assert entry["build_id"] == traveller.bundle.build_id and entry["name"].startswith("vit_a+vit_b@")
    assert (traveller.bundle.home / entry["evidence"] / "oof.csv").is_file()


def test_history_is_read_by_the_real_client_over_several_pages(traveller: Traveller, stub: Stub) -> None:
    traveller.go()
    stub.private_score = "0.8999"
    stub.submissions += [{"ref": 2000 + n, "description": f"another {n}", "polls": 5} for n in range(30)]
    ledger = traveller.bundle.home / "submissions.json"
    variables = environment(stub, traveller.home, os.environ["PATH"])
    command = ["-m", "cassava_kit", "submit", "history", "--ledger", ledger, "--json"]
    done = run_python(command, cwd=REPOSITORY, env=variables)
    said = json.loads(done.stdout)
    assert not said["notes"] and len(said["submissions"]) == 31 == len({each["ref"] for each in said["submissions"]})
    ours = next(each for each in said["submissions"] if each["ref"] == 1000)
    assert (ours["build"], ours["public"], ours["private"]) == (traveller.bundle.build_id[:12], 0.9012, 0.8999)
    (kept,) = read_json(ledger)["submissions"]
    assert kept["private_score"] == "0.8999" and kept["file_sha256"] and kept["date"].startswith("2026-11-28T10:00:00")


TRAIN = f"{USER}/cassava-kit-train-folds"


@pytest.fixture
def trainer(pristine: Path, stub: Stub, tmp_path: Path, checkpoints: dict[str, Path]) -> Traveller:
    """A user who pushes the notebook that trains; what it leaves on Kaggle is a run's folder."""
    changes = Changes({"RECIPE": "resnet18", "FOLDS": [0]}, ("somebody/first-weights",))
    bundle = package_kernel(tmp_path / "kernels", find_kernel("train-folds"), root=pristine, changes=changes)
    stub.datasets["somebody/first-weights"] = Dataset({"resnet18.safetensors": b""})
    stub.output = {
        "runs/resnet18/fold0/best.safetensors": next(iter(checkpoints.values())).read_bytes(),
        "runs/resnet18/fold0/oof.csv": b"image_id,p0,p1,fold\n1.jpg,0.5,0.5,0\n",
        "kfold5.csv": b"image_id,label,fold\n1.jpg,0,0\n",
    }
    return Traveller(bundle, stub, tmp_path / "home")


def test_a_kernel_that_trains_is_pushed_pinned_and_its_output_fetched(trainer: Traveller, stub: Stub) -> None:
    code, printed = trainer.go("push")
    assert code == 0, printed
    assert set(stub.datasets) == {KIT, "somebody/first-weights"} and stub.counts["CreateDataset"] == 1
    (kernel,) = stub.calls("SaveKernel")
    assert kernel["slug"] == TRAIN and kernel["enableInternet"] is False
    assert kernel["machineShape"] == "NvidiaTeslaT4" and kernel["isPrivate"] is True
    assert kernel["datasetDataSources"] == [KIT, "somebody/first-weights"]
    assert kernel["kernelDataSources"] == [TRAIN], "its own output, although there is none yet"
    code_cells = ["".join(cell["source"]) for cell in json.loads(kernel["text"])["cells"]]
    assert any("RECIPE = 'resnet18'\nFOLDS = [0]" in cell for cell in code_cells)
    assert any(read_json(trainer.bundle.kit_dir / "KIT_MANIFEST.json")["build_id"] in cell for cell in code_cells)
    output = trainer.bundle.home / "output-train-folds"
    assert {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()} >= set(stub.output)
    planned = {call.split()[0] for call in planned_calls(trainer.bundle)}
    assert planned == set(stub.counts) - {"PUT", "GET"}


def test_a_kernel_that_trains_runs_again_only_when_asked(trainer: Traveller, stub: Stub) -> None:
    trainer.go("push")
    code, printed = trainer.go("push")
    assert code == 0 and "was pushed already" in printed and not stub.counts["SaveKernel"]
    stub.kernel_statuses = ["COMPLETE", "RUNNING", "COMPLETE"]
    stub.instead["SaveKernel"] = ["lost before"]
    code, printed = trainer.go("again")
    assert code == 0, printed
    assert len(stub.kernels[TRAIN]) == 2, "the first version, of the same source, is not taken for the second"
    assert not stub.counts["StartBlobUpload"]


def test_again_waits_for_a_session_that_still_runs(trainer: Traveller, stub: Stub) -> None:
    stub.kernel_statuses = ["RUNNING"]
    trainer.fails("did not end", "push")
    stub.kernel_statuses = ["RUNNING", "COMPLETE"]
    code, printed = trainer.go("again")
    assert code == 0 and len(stub.kernels[TRAIN]) == 1, printed


def test_a_push_that_is_stopped_and_given_again_takes_up_the_same_session(stub: Stub, tmp_path: Path) -> None:
    """By `submit.py`, which packs anew each time; the repository names no owner, the credentials do."""
    stub.kernel_statuses = ["RUNNING"]
    stub.datasets["somebody/first-weights"] = Dataset({"resnet18.safetensors": b""})
    stub.output = {"notes.json": b"{}"}
    variables = environment(stub, tmp_path / "home", os.environ["PATH"])
    given = ["--kernel", "train-folds", "--param", "RECIPE=resnet18", "--param", "WEIGHTS=resnet18.safetensors"]
    arguments = [REPOSITORY / "submit.py", "push", *given, "--attach", "somebody/first-weights"]
    stopped = start_python(arguments, cwd=tmp_path, env=variables)
    stopped.wait_until(lambda: stub.counts["GetKernelSessionStatus"])
    stopped.kill()
    assert len(stub.kernels[TRAIN]) == 1, stopped.printed()
    uploaded = stub.counts["StartBlobUpload"]
    stub.kernel_statuses = ["RUNNING", "COMPLETE"]
    printed = run_python(arguments, cwd=tmp_path, env=variables)
    assert "version 1 was pushed already" in printed.stdout + printed.stderr, printed
    assert len(stub.kernels[TRAIN]) == 1 and stub.counts["StartBlobUpload"] == uploaded
    assert (tmp_path / "outputs/train-folds/notes.json").is_file()


def test_fetching_pushes_nothing(trainer: Traveller, stub: Stub) -> None:
    trainer.go("push")
    shutil.rmtree(trainer.bundle.home / "output-train-folds")
    code, printed = trainer.go("fetch")
    assert code == 0, printed
    assert set(stub.counts) == {"GetKernelSessionStatus", "ListKernelSessionOutput", "GET"}
    assert (trainer.bundle.home / "output-train-folds" / "runs/resnet18/fold0/best.safetensors").is_file()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({}, "left no files"),
        ({"runs/x/fold0/best.safetensors": b"<html>503</html>"}, "is damaged"),
        ({"runs/x/oof.csv": b"image_id,p0,p1\n1.jpg,0.5,0.9\n"}, "probabilities that sum to 1"),
    ],
)
def test_training_output_that_is_not_whole_is_named(
    trainer: Traveller, stub: Stub, output: dict[str, bytes], message: str
) -> None:
    stub.output = output
    trainer.fails(message, "push")


def test_a_name_that_leads_out_of_the_folder_is_not_fetched(trainer: Traveller, stub: Stub) -> None:
    stub.output |= {"../../escaped.txt": b"x"}
    code, printed = trainer.go("push")
    assert code == 0, printed
    assert not list(trainer.bundle.home.parent.rglob("escaped.txt"))


def test_the_doctor_stops_a_stale_kernel_before_anything_is_uploaded(trainer: Traveller, stub: Stub) -> None:
    text = trainer.bundle.notebook.read_text()
    build = read_json(trainer.bundle.kit_dir / "KIT_MANIFEST.json")["build_id"]
    trainer.bundle.notebook.write_text(text.replace(build, "0" * 64))
    trainer.fails("the notebook is pinned to another build", "push")
    assert not stub.counts["StartBlobUpload"]
