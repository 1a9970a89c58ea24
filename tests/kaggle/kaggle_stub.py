"""A Kaggle on 127.0.0.1, for the real client: it keeps datasets, kernels and submissions, and can be made to refuse.

The client is sent here by `KAGGLE_API_ENVIRONMENT=LOCALHOST` and an HTTP proxy, so requests come in absolute form.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

USER, KEY = "stubuser", "PLANTED-STUB-KEY-0123456789"
Answer = tuple[int, dict[str, Any]]
LARGEST_PAGE = 20


@dataclass
class Dataset:
    """Files by name, how often it was uploaded, and how many more status questions it answers with `processing`."""

    files: dict[str, bytes]
    version: int = 1
    processing: int = 0
    # What is served until processing is over: the version before.
    before: dict[str, bytes] | None = None


@dataclass
class Stub:
    """The state of the stub, what it has seen, and how it misbehaves."""

    datasets: dict[str, Dataset] = field(default_factory=dict)
    kernels: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    submissions: list[dict[str, Any]] = field(default_factory=list)
    blobs: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    output: dict[str, bytes] = field(default_factory=dict)
    log: str = "[]"
    kernel_statuses: list[str] = field(default_factory=lambda: ["QUEUED", "RUNNING", "COMPLETE"])
    # Version label -> statuses, where one version answers otherwise than the latest.
    version_statuses: dict[str, list[str]] = field(default_factory=dict)
    failure_message: str = ""
    allowed_now: int = 3
    joined: bool = True
    score: str = "0.9012"
    private_score: str = ""
    submission_error: str = ""
    processing: int = 1
    # Method -> answers given instead of the real one, in turn; None lets one call through.
    instead: dict[str, list[Answer | str | None]] = field(default_factory=dict)
    port: int = 0

    def calls(self, method: str) -> list[dict[str, Any]]:
        """Bodies of the requests to one method."""
        return [body for name, body in self.seen if name == method]

    @property
    def counts(self) -> Counter[str]:
        """How often each method was called."""
        return Counter(name for name, _ in self.seen)

    def answer(self, method: str, body: dict[str, Any]) -> Answer:
        """What Kaggle would say; methods that this stub does not know are answered with 404."""
        known: Callable[[dict[str, Any]], Answer] | None = getattr(self, f"on_{method}", None)
        return known(body) if known else (404, {"code": 404, "message": f"{method} not found"})

    def on_GetDatasetStatus(self, body: dict[str, Any]) -> Answer:  # noqa: N802 - named after the API's methods
        dataset = self.datasets.get(f"{body['ownerSlug']}/{body['datasetSlug']}")
        if dataset is None:
            return 403, {"code": 403, "message": "Permission 'datasets.get' was denied"}
        dataset.processing -= 1
        return 200, {"status": "READY" if dataset.processing < 0 else "BLOBS_RECEIVED"}

    def on_GetDataset(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        dataset = self.datasets.get(f"{body['ownerSlug']}/{body['datasetSlug']}")
        if dataset is None:
            return 404, {"code": 404, "message": "not found"}
        return 200, {"ref": f"{body['ownerSlug']}/{body['datasetSlug']}", "currentVersionNumber": dataset.version}

    def on_StartBlobUpload(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        token = f"token{len(self.blobs)}"
        self.blobs[token] = (body["name"], b"")
        return 200, {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def _create(self, dataset: str, files: list[dict[str, Any]]) -> Answer:
        stored = dict(self.blobs[file["token"]] for file in files)
        old = self.datasets.get(dataset)
        before, version = (old.files, old.version + 1) if old else (None, 1)
        self.datasets[dataset] = Dataset(stored, version, self.processing, before)
        return 200, {"ref": dataset, "url": f"http://localhost/{dataset}", "status": "ok", "error": ""}

    def on_CreateDataset(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        assert body["isPrivate"] is True
        return self._create(f"{body['ownerSlug']}/{body['slug']}", body["files"])

    def on_CreateDatasetVersion(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        return self._create(f"{body['ownerSlug']}/{body['datasetSlug']}", body["body"]["files"])

    def served(self, body: dict[str, Any]) -> dict[str, bytes] | None:
        """The files that are visible now: the version before, until the new one is ready."""
        dataset = self.datasets.get(f"{body['ownerSlug']}/{body['datasetSlug']}")
        if dataset is None:
            return None
        return dataset.before if dataset.processing >= 0 and dataset.before else dataset.files

    def on_ListDatasetFiles(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        files = self.served(body)
        if files is None:
            return 404, {"code": 404, "message": "not found"}
        return 200, {"datasetFiles": [{"name": name, "totalBytes": len(data)} for name, data in files.items()]}

    def on_SaveKernel(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        attached = {"invalidDatasetSources": (body["datasetDataSources"], self.datasets)}
        attached["invalidKernelSources"] = (body.get("kernelDataSources") or [], dict(self.kernels))
        invalid = {key: [name for name in names if name not in known] for key, (names, known) in attached.items()}
        versions = self.kernels.setdefault(body["slug"], [])
        versions.append(body)
        reply = {"ref": f"/code/{body['slug']}", "url": "http://localhost/k", "versionNumber": len(versions)}
        return 200, reply | {key: names for key, names in invalid.items() if names}

    def on_GetKernel(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        versions = self.kernels.get(f"{body['userName']}/{body['kernelSlug']}")
        if not versions:
            return 404, {"code": 404, "message": "not found"}
        return 200, {
            "metadata": {"currentVersionNumber": len(versions)},
            "blob": {"source": versions[-1]["text"], "kernelType": "notebook"},
        }

    def on_GetKernelSessionStatus(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        if f"{body['userName']}/{body['kernelSlug']}" not in self.kernels:
            return 403, {"code": 403, "message": "Permission 'kernels.get' was denied"}
        statuses = self.version_statuses.get(body.get("versionLabel", ""), self.kernel_statuses)
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        return 200, {"status": status} | ({"failureMessage": self.failure_message} if status == "ERROR" else {})

    def on_ListKernelSessionOutput(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        files = [{"fileName": name, "url": f"http://localhost/output/{name}"} for name in self.output]
        return 200, {"files": files, "log": self.log}

    def on_GetAcceleratorQuotaStatistics(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        return 200, {"gpuQuota": {"timeUsed": "3600s", "totalTimeAllowed": "108000s"}}

    def on_CreateCodeSubmission(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        ref = 1000 + len(self.submissions)
        self.submissions.append({"ref": ref, "description": body["submissionDescription"], "polls": 0})
        return 200, {"message": "Successfully submitted", "ref": ref}

    def on_GetSubmissionLimits(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        return 200, {"numToday": 2, "numTotal": 9, "numAllowedNow": self.allowed_now}

    def on_GetCompetition(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        return 200, {"ref": body["competitionName"], "userHasEntered": self.joined}

    def on_ListSubmissions(self, body: dict[str, Any]) -> Answer:  # noqa: N802
        start = int(body.get("pageToken") or 0)
        newest_first, end, listed = self.submissions[::-1], start + min(body.get("pageSize", 20), LARGEST_PAGE), []
        for each in newest_first[start:end]:
            each["polls"] += 1
            status = "PENDING" if each["polls"] < 2 else "ERROR" if self.submission_error else "COMPLETE"
            scores = {"publicScore": self.score} | ({"privateScore": self.private_score} if self.private_score else {})
            shown: dict[str, Any] = scores | {"date": "2026-11-28T10:00:00Z"} if status == "COMPLETE" else {}
            shown |= {"errorDescription": self.submission_error} if status == "ERROR" else {}
            listed.append({"ref": each["ref"], "description": each["description"], "status": status} | shown)
        return 200, {"submissions": listed} | ({"nextPageToken": str(end)} if end < len(newest_first) else {})


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

        def reply(self, status: int, content: bytes, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def misbehaves(self, method: str) -> bool:
            answers = stub.instead.get(method, [])
            chosen = answers.pop(0) if answers else None
            if chosen in ("lost before", "lost after"):
                if chosen == "lost after":
                    stub.answer(method, stub.seen[-1][1])
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return True
            if isinstance(chosen, tuple):
                self.reply(chosen[0], json.dumps(chosen[1]).encode())
                return True
            return False

        def do_POST(self) -> None:
            method = urlsplit(self.path).path.rpartition("/")[2]
            body = json.loads(self.body() or b"{}")
            expected = "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()
            stub.seen.append((method, body))
            if self.headers.get("Authorization") != expected:
                return self.reply(401, json.dumps({"code": 401, "message": "Unauthenticated"}).encode())
            if self.misbehaves(method):
                return None
            if method == "DownloadDataset":
                files = stub.served(body) or {}
                if body["fileName"] in files:
                    self.send_response(302)
                    self.send_header(
                        "Location",
                        f"http://localhost/file/{body['ownerSlug']}/{body['datasetSlug']}/{body['fileName']}",
                    )
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return None
                return self.reply(404, b'{"code": 404, "message": "not found"}')
            status, answer = stub.answer(method, body)
            return self.reply(status, json.dumps(answer).encode())

        def do_PUT(self) -> None:
            token, content = self.path.rpartition("/")[2], self.body()
            stub.seen.append(("PUT", {"name": stub.blobs[token][0], "size": len(content)}))
            if self.misbehaves("PUT"):
                return
            if not self.headers.get("Content-Range", "").startswith("bytes */"):
                stub.blobs[token] = (stub.blobs[token][0], content)
            self.reply(200, b"{}")

        def do_GET(self) -> None:
            parts = unquote(urlsplit(self.path).path).strip("/").split("/")
            stub.seen.append(("GET", {"name": parts[-1]}))
            if parts[0] == "file":
                content = (stub.served({"ownerSlug": parts[1], "datasetSlug": parts[2]}) or {})[parts[3]]
            else:
                content = stub.output["/".join(parts[1:])]
            if not self.misbehaves("GET"):
                self.reply(200, content, "application/octet-stream")

    return Handler


@contextmanager
def running(stub: Stub) -> Iterator[Stub]:
    """Serve on any free port of 127.0.0.1 until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    server.daemon_threads = True
    stub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()


def environment(stub: Stub, home: Path, path: str) -> dict[str, str]:
    """What sends the real client to the stub and nowhere else."""
    home.mkdir(exist_ok=True)
    return {
        "PATH": path,
        # Another version of the client, installed in a folder of its own.
        "PYTHONPATH": os.environ.get("CASSAVA_KIT_KAGGLE_SITE", ""),
        "HOME": str(home),
        "TMPDIR": str(home),
        "KAGGLE_CONFIG_DIR": str(home / "config"),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "KAGGLE_USERNAME": USER,
        "KAGGLE_KEY": KEY,
        "http_proxy": f"http://127.0.0.1:{stub.port}",
        "https_proxy": "http://127.0.0.1:9",
        "no_proxy": "",
        "NO_PROXY": "",
    }
