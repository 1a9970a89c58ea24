"""Networks built for tensors from a file: nothing is drawn, and what no file holds is as timm makes it."""

import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from cassava_kit.models.checkpoint import CheckpointInfo, load_model, save_checkpoint
from cassava_kit.models.network import create_model
from cassava_kit.models.skeleton import without_weights

SMALL = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}
NETWORKS = [  # relative position index, rope tables, attention masks, blur filters, attention bias index
    ("vit_tiny_patch16_224", SMALL),
    ("eva02_tiny_patch14_224", {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 2}),
    ("vit_small_patch16_dinov3", {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 2}),
    ("beit_base_patch16_224", {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2)}),
    ("swinv2_tiny_window8_256", {"img_size": 64, "embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2)}),
    ("levit_128s", {"embed_dim": (16, 24, 32), "num_heads": (1, 2, 2), "depth": (1, 1, 1), "img_size": 64}),
    ("resnetblur18", {"channels": (8, 8, 8, 8)}),
    ("test_efficientnet", {}),
    ("test_convnext", {}),
]


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, buffers of both kinds, and tensors that are plain attributes."""
    found = {f"{name}.{key}": v for name, m in model.named_modules() for key, v in vars(m).items()}
    plain = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    return {**dict(model.named_parameters()), **dict(model.named_buffers()), **plain}


CASES = [(name, args, "linear") for name, args in NETWORKS] + [(name, args, "dense") for name, args in NETWORKS[:2]]


@pytest.mark.parametrize(("name", "args", "head"), CASES, ids=[f"{name}-{head}" for name, _, head in CASES])
def test_a_loaded_network_is_the_one_that_was_saved(name, args, head, tmp_path):
    torch.manual_seed(3)
    model = create_model(name, 5, model_args=args, head=head).eval()
    side = args.get("img_size", 64)
    info = CheckpointInfo(
        model=name, model_args=args, head=head, n_classes=5, input_size=(side, side), mean=(0,) * 3, std=(1,) * 3,
        recipe="r",
    )  # fmt: skip
    save_checkpoint(tmp_path / "a.safetensors", model.state_dict(), info)
    loaded, _ = load_model(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"")  # nothing of it lies in the file any more
    wanted, found = all_tensors(model), all_tensors(loaded)
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value) and found[key].dtype == value.dtype, key
        assert found[key].requires_grad == value.requires_grad
    x = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads the memory in use from Linux")
def test_weights_that_are_not_written_take_no_memory():
    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    before = pages()
    with without_weights():
        layers = [nn.Linear(5000, 5000), nn.Conv2d(1000, 1000, 5), nn.LayerNorm(10_000_000)]
    n_bytes = sum(p.numel() * p.element_size() for layer in layers for p in layer.parameters())
    assert n_bytes > 200_000_000
    assert (pages() - before) * os.sysconf("SC_PAGE_SIZE") < n_bytes / 10


def test_parameters_are_left_as_they_are_in_this_thread_alone():
    with without_weights():
        linear = nn.Linear(3, 3)
        kept = linear.weight.detach().clone()
        nn.init.ones_(linear.weight)
        nn.init.trunc_normal_(linear.weight)
        linear.weight.data.copy_(kept)
        made = []
        thread = threading.Thread(target=lambda: made.append(nn.Linear(400, 400)))
        thread.start()
        thread.join()
        buffer = torch.zeros(3).fill_(2)
    assert torch.equal(linear.weight.nan_to_num(), kept.nan_to_num())
    assert float(made[0].weight.detach().std()) == pytest.approx(
        1 / 20 / 3**0.5, rel=0.05
    )  # torch's own initial weights
    assert buffer.tolist() == [2, 2, 2]
    assert nn.init.ones_(linear.weight).sum() == 9  # and it ends with the block


def test_a_missing_tensor_is_refused(tmp_path):
    model = create_model("test_efficientnet", 5)
    state = model.state_dict()
    lost = "classifier.bias"
    del state[lost]
    info = CheckpointInfo(
        model="test_efficientnet", n_classes=5, input_size=(32, 32), mean=(0,) * 3, std=(1,) * 3, recipe="r"
    )
    save_checkpoint(tmp_path / "a.safetensors", state, info)
    with pytest.raises(ValueError, match=rf"does not fit test_efficientnet.*{lost}"):
        load_model(tmp_path / "a.safetensors")


def test_tensors_of_another_precision_become_the_networks(tmp_path):
    model = create_model("test_efficientnet", 5)
    info = CheckpointInfo(
        model="test_efficientnet", n_classes=5, input_size=(32, 32), mean=(0,) * 3, std=(1,) * 3, recipe="r"
    )
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_checkpoint(tmp_path / "a.safetensors", half, info)
    loaded, _ = load_model(tmp_path / "a.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.conv_stem.weight, half["conv_stem.weight"].float())
