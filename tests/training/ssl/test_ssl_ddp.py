"""Two gloo processes with half a batch each are one process with the whole batch: same loss, gradient and queue."""

import json
import textwrap

import cv2
import numpy as np
import pytest
import torch
from processes import run_python, start_python

from cassava_kit.models.checkpoint import load_model
from cassava_kit.settings import replace
from cassava_kit.training.ssl.methods import configure, make_ssl_module
from cassava_kit.training.ssl.pretrain import pretrain

VIT = {
    "backbone": "vit_tiny_patch16_224",
    "model_args": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1},
    "image_size": 16,
    "batch_size": 8,
    "epochs": 20,
    "warmup_epochs": 0,
    "hidden_dim": 16,
    "output_dim": 8,
    "accelerator": "cpu",
}
METHODS = {
    "simclr": {"head_norm": "layer", "views": ({"size": 16, "count": 2},)},
    "moco": {"views": ({"size": 16, "count": 2},), "queue_size": 24, "bn_groups": 1},
    "byol": {"head_norm": "layer", "views": ({"size": 16}, {"size": 16}), "predictor_dim": 16},
    "swav": {
        "head_norm": "layer",
        "views": ({"size": 16, "count": 2}, {"size": 16, "count": 1, "scale": (0.1, 0.3)}),
        "prototypes": 6,
        "queue_size": 8,
        "queue_from_epoch": 0,
    },
}

STEP = """
    def two_steps(module, views, wrap):
        # The loss and the gradient of the second step, whose queue the first one filled.
        for step in range(2):
            module.zero_grad()
            loss = wrap(views)
            loss.backward()
            module.on_train_batch_end(None, None, step)
        return loss.detach(), {n: p.grad for n, p in module.named_parameters() if p.requires_grad}
"""

WORKER = (
    """
    import json, sys, torch, torch.distributed as dist
    from cassava_kit.training.ssl.methods import configure, make_ssl_module
"""
    + STEP
    + """
    class Step(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, views):
            return self.module.compute_loss(views)

    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for method in ("simclr", "moco", "byol", "swav"):
        config = configure(**json.load(open(f"{folder}/{method}.json")))
        module = make_ssl_module(config)
        module.load_state_dict(torch.load(f"{folder}/{method}-state.pt", weights_only=True))
        module.trainer = type("Trainer", (), {"current_epoch": 0})()
        whole = torch.load(f"{folder}/{method}-views.pt", weights_only=True)
        views = [view[rank * 4 : rank * 4 + 4] for view in whole]
        loss, gradient = two_steps(module, views, torch.nn.parallel.DistributedDataParallel(Step(module)))
        dist.all_reduce(loss)
        if rank == 0:
            out = {"loss": loss / 2, "gradient": gradient, "state": module.state_dict()}
            torch.save(out, f"{folder}/{method}-out.pt")
    dist.destroy_process_group()
"""
)


def run_two(code, folder):
    """Run a worker script in two processes; their standard errors show on failure."""
    script = folder / "worker.py"
    script.write_text(textwrap.dedent(code))
    processes = [start_python([script, rank, folder]) for rank in range(2)]
    codes = [process.wait() for process in processes]
    assert codes == [0, 0], [process.printed() for process in processes]


def start(method):
    """Module and views, the same each time."""
    config = configure(method, **{**VIT, **METHODS[method]})
    torch.manual_seed(0)
    module = make_ssl_module(config)
    return config, module, [torch.randn(8, 3, v.size, v.size) for v in config.views for _ in range(v.count)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder with each method's outcome on two processes."""
    folder = tmp_path_factory.mktemp("gloo")
    for method in METHODS:
        config, module, views = start(method)
        (folder / f"{method}.json").write_text(json.dumps(config.model_dump(mode="json")))
        torch.save(module.state_dict(), folder / f"{method}-state.pt")
        torch.save(views, folder / f"{method}-views.pt")
    run_two(WORKER, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one_with_the_whole_batch(method, two_processes):
    two = torch.load(two_processes / f"{method}-out.pt", weights_only=True)
    _, module, views = start(method)
    scope: dict = {}
    exec(textwrap.dedent(STEP), scope)
    module.trainer = type("Trainer", (), {"current_epoch": 0})()
    loss, gradient = scope["two_steps"](module, views, module.compute_loss)
    assert float(two["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert two["gradient"].keys() == gradient.keys()
    for name, expected in gradient.items():
        assert torch.allclose(two["gradient"][name], expected, rtol=1e-4, atol=1e-6), name
    ours = torch.cat([value.flatten() for value in gradient.values()])
    theirs = torch.cat([two["gradient"][name].flatten() for name in gradient])
    assert float((ours - theirs).norm() / ours.norm()) < 1e-5
    for name, value in module.state_dict().items():
        if "bank" in name or "pushed" in name:
            assert torch.allclose(two["state"][name].float(), value.float(), atol=1e-5), name


SHUFFLE = """
    import sys, torch, torch.distributed as dist
    from cassava_kit.training.ssl.methods import configure
    from cassava_kit.training.ssl.moco import MoCo

    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    config = configure("moco", image_size=8, views=({"size": 8, "count": 2},), queue_size=8, bn_groups=1)
    backbone = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten())
    module = MoCo(config, backbone)
    seen = []

    class Note(torch.nn.Module):
        def forward(self, images):
            seen.extend(images[:, 0, 0, 0].tolist())
            return images.flatten(1)

    module.momentum_backbone, module.momentum_projection_head = Note(), torch.nn.Identity()
    torch.manual_seed(7 + rank)  # each process shuffles by its own seed; the first one's order must win
    images = torch.randn(32, 3, 8, 8)
    images[:, 0, 0, 0] = torch.arange(32) + 100 * rank
    keys = module.encode_keys(images)
    assert torch.allclose(keys, torch.nn.functional.normalize(images.flatten(1), dim=1)), "keys come home in order"
    mine = sum(value // 100 == rank for value in seen)
    assert len(seen) == 32 and 0 < mine < 32, "a process encodes keys of both"
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_moco_shuffles_keys_across_processes(tmp_path):
    run_two(SHUFFLE, tmp_path)


RUN = """
    import json, sys
    from pathlib import Path
    from cassava_kit.training.ssl.methods import configure
    from cassava_kit.training.ssl.pretrain import pretrain

    folder = Path(sys.argv[1])
    config = configure(**json.loads((folder / "config.json").read_text()))
    pretrain(config, sorted((folder / "images").glob("*.png")), folder / "run")
"""


@pytest.mark.slow
def test_a_whole_run_on_two_processes_is_the_run_on_one(tmp_path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for k in range(16):
        cv2.imwrite(str(tmp_path / "images" / f"{k:02d}.png"), rng.integers(0, 255, (20, 24, 3), dtype=np.uint8))
    one = configure("simclr", **{**VIT, **METHODS["simclr"], "epochs": 2, "num_workers": 0})
    two = replace(one, devices=2, batch_size=4)
    (tmp_path / "config.json").write_text(json.dumps(two.model_dump(mode="json")))
    (tmp_path / "run.py").write_text(textwrap.dedent(RUN))
    assert run_python([tmp_path / "run.py", tmp_path]).returncode == 0
    whole = pretrain(one, sorted((tmp_path / "images").glob("*.png")), tmp_path / "whole")
    a, b = (load_model(path)[0].state_dict() for path in (whole, tmp_path / "run" / "backbone.safetensors"))
    for name, value in a.items():
        assert torch.allclose(value, b[name], atol=1e-5), name
