"""List the calls of a push without making them: `planned_calls`."""

from __future__ import annotations

from cassava_kit.files import read_json
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.config import METADATA_FILE
from cassava_kit.kaggle.pack.kernels import KERNEL_METADATA
from cassava_kit.kaggle.pack.manifest import MANIFESTS


def planned_calls(bundle: Bundle, *, submit: bool = False) -> list[str]:
    """Return every call that pushing this bundle would make, in order; nothing is called."""
    slug = bundle.competition.slug
    calls = [f"GetCompetition {slug}: whether its rules are accepted"]
    calls += [f"GetSubmissionLimits {slug}: how many are left today"] if bundle.kernel.weights else []
    calls += [f"ListSubmissions {slug}: what waits for a score, and what was scored before"] if submit else []
    for kind, folder in bundle.datasets:
        dataset = read_json(folder / METADATA_FILE)["id"]
        files = sorted(path for path in folder.iterdir() if path.name != METADATA_FILE)
        calls.append(f"GetDatasetStatus {dataset}")
        calls.append(f"DownloadDataset {dataset} {MANIFESTS[kind]}: if it is this build, nothing is uploaded")
        calls += [f"StartBlobUpload {path.name}, PUT {path.stat().st_size} bytes" for path in files]
        calls.append(f"CreateDataset {dataset}, private (GetDataset and CreateDatasetVersion if it exists)")
        calls.append(f"GetDatasetStatus {dataset} until it is ready")
        calls.append(f"DownloadDataset {dataset} {MANIFESTS[kind]}, compared with what was packed")
        calls.append(f"ListDatasetFiles {dataset}, compared with the manifest")
    metadata = read_json(bundle.kernel_dir / KERNEL_METADATA)
    sources = metadata["dataset_sources"] + metadata["competition_sources"] + metadata["kernel_sources"]
    given = ", ".join(sources)
    calls.append(f"GetKernel {metadata['id']}: if it is this notebook and runs or ran, it is not pushed again")
    calls += ["GetAcceleratorQuotaStatistics"] if metadata["enable_gpu"] else []
    calls.append(f"SaveKernel {metadata['id']}, {metadata.get('machine_shape', 'CPU')}, internet off, with {given}")
    calls.append(f"GetKernelSessionStatus {metadata['id']} until it has ended")
    left = "GET submission.csv, GET run.json" if bundle.kernel.weights else "GET each file"
    calls.append(f"ListKernelSessionOutput {metadata['id']}, {left}")
    if submit:
        calls.append(f"ListSubmissions {slug}: if this build is there, it is not submitted again")
        calls.append(f"CreateCodeSubmission {slug} {metadata['id']} submission.csv")
        calls.append(f"ListSubmissions {slug} until it has a score")
    return calls
