"""Half precision judged by answers: rounding passes, numbers that are finite and wrong do not."""

import numpy as np
import pytest
import torch
from torch import nn

from cassava_kit.models import precision
from cassava_kit.models.checkpoint import CheckpointInfo
from cassava_kit.models.network import create_model
from cassava_kit.models.precision import compare_precisions, judge_half, logits_in, precisions_to_try

CUDA = torch.device("cuda")


def images(n: int = 8) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Channels(nn.Module):
    """A linear layer on the channels' means, with something done to them before."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)
        nn.init.normal_(self.head.weight, std=8.0, generator=torch.Generator().manual_seed(1))

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(x.mean((2, 3))))


class Clamped(Channels):
    """What lies beyond 65504 is cut off there, as some kernels do: finite, and wrong in float16 alone."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        big = (x.float() * 1e6).clamp(*((-65504, 65504) if x.dtype == torch.float16 else (None, torch.inf)))
        return (big / 1e6).to(x.dtype)


class LostBits(Channels):
    """A small difference of large numbers: above 2048, float16 has even numbers alone."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 4096) - 4096


class Overflowing(Channels):
    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1e6 / 1e6


class Autocast(Channels):
    """Wrong where its own weights are float16, right where they are float32."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.head.weight.dtype == torch.float32 else x * 0


@pytest.mark.parametrize(
    ("network", "verdict"),
    [(Channels, "safe"), (Clamped, "no"), (LostBits, "no"), (Overflowing, "no"), (Autocast, "autocast only")],
)
def test_a_network_is_judged_by_its_answers(network: type[Channels], verdict: str) -> None:
    model = network().eval()
    if network is Clamped:  # autocast hands on what it was given: the layer before it has to be float16
        model = nn.Sequential(nn.Conv2d(3, 3, 1), model).eval()
        nn.init.dirac_(model[0].weight)
    if network in (LostBits, Overflowing):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), model).eval()
        nn.init.dirac_(model[0].weight)
    found, comparisons = judge_half(model, images())
    assert found == verdict
    assert next(model.parameters()).dtype == torch.float32  # the network itself is as before
    assert (comparisons["fp16"].non_finite > 0) == (network is Overflowing)


@pytest.mark.parametrize(
    ("model", "args"),
    [("resnet10t", {"channels": [8, 16, 16, 16]}), ("test_vit", {"img_size": 32}), ("test_convnext", {})],
)
def test_timm_networks_are_safe(model: str, args: dict) -> None:
    torch.manual_seed(0)
    network = create_model(model, 5, model_args=args).eval()
    x = torch.randn(4, 3, 32, 32)
    verdict, comparisons = judge_half(network, x)
    assert verdict == "safe"
    with torch.inference_mode():
        difference = network(x).double().softmax(1) - logits_in(network, x, "fp16-autocast").double().softmax(1)
    assert comparisons["fp16-autocast"].probability == pytest.approx(float(difference.abs().max()), rel=0.01)
    assert float(difference.abs().max()) > 0  # it was computed in half precision


def test_differences_are_those_of_a_calculation_by_hand() -> None:
    reference = torch.tensor([[np.log(3.0), 0.0], [0.0, np.log(4.0)]], dtype=torch.float32)
    logits = torch.tensor([[0.0, 0.0], [7.0, 7.0 + np.log(4.0)]], dtype=torch.float32)
    found = compare_precisions(logits, reference)
    # Softmax: (3/4, 1/4) and (1/5, 4/5) against (1/2, 1/2) and the same: a shift of all logits changes nothing.
    assert found.probability == pytest.approx(0.25) and found.n == 2
    assert found.equal_labels == 1.0  # the first of two tied classes
    # Centred: +-log(3)/2 and +-log(4)/2; the distance is log(3)/sqrt(2), the root of the mean square length below.
    length = np.sqrt((np.log(3) ** 2 / 2 + np.log(4) ** 2 / 2) / 2)
    assert found.logits == pytest.approx(np.log(3) / np.sqrt(2) / length, rel=1e-6)
    assert not found.agrees


def test_nearly_tied_classes_may_swap() -> None:
    reference = torch.tensor([[2.0, 2.001, -1.0], [1.0, 0.999, 0.0], [3.0, 0.0, 0.0]])
    swapped = reference + torch.tensor([[0.002, 0, 0], [0, 0.002, 0], [0, 0, 0]])
    found = compare_precisions(swapped, reference)
    assert found.equal_labels == pytest.approx(1 / 3) and found.agrees


def test_a_single_wrong_image_and_uniform_rubbish_are_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(64, 5, generator=generator) * 3
    one = reference.clone()
    one[17] = one[17].roll(1)
    assert not compare_precisions(one, reference).agrees
    # Probabilities near 1/5 hide that every label is another's: the logits' own length does not.
    faint = reference * 0.005
    found = compare_precisions(faint.roll(1, 0), faint)
    assert found.probability < precision.MOST_OF_PROBABILITY and not found.agrees
    # Logits of a hundred hide an image whose probability moves by a tenth.
    sure = torch.zeros(64, 2)
    sure[:, 0], sure[0, 0] = 100.0, 0.0
    moved = sure.clone()
    moved[0, 0] = 0.4
    found = compare_precisions(moved, sure)
    assert found.logits < precision.MOST_OF_LOGITS and not found.agrees


def test_only_what_is_a_number_in_the_reference_counts() -> None:
    reference = torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])
    found = compare_precisions(torch.tensor([[1.0, 2.0], [torch.nan, 0.0]]), reference)
    assert found.agrees and found.n == 1
    found = compare_precisions(torch.tensor([[torch.inf, 2.0], [0.0, 0.0]]), reference)
    assert not found.agrees and found.non_finite == 1 and "1 of 1 images are not finite" in str(found)


def test_the_header_decides_what_a_gpu_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))  # T4
    resnet, dino = "resnet18", "vit_small_patch16_dinov3.lvd1689m"
    assert precisions_to_try(None, resnet, CUDA) == ("fp16", "fp16-autocast", "fp32")
    assert precisions_to_try("safe", dino, CUDA) == ("fp16", "fp16-autocast", "fp32")  # what was measured wins
    assert precisions_to_try("autocast only", resnet, CUDA) == ("fp16-autocast", "fp32")
    assert precisions_to_try("no", resnet, CUDA) == precisions_to_try(None, dino, CUDA) == ("fp32",)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))  # H100
    assert precisions_to_try("autocast only", resnet, CUDA) == ("fp16-autocast", "bf16", "fp32")
    assert precisions_to_try("no", resnet, CUDA) == ("bf16", "fp32")
    for verdict in (None, "safe", "no"):
        assert precisions_to_try(verdict, resnet, torch.device("cpu")) == ("fp32",)


def test_the_header_takes_three_verdicts() -> None:
    facts = {"model": "m", "n_classes": 5, "input_size": (8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "recipe": "r"}
    assert CheckpointInfo(**facts).fp16 is None
    assert CheckpointInfo(**facts, fp16="autocast only").fp16 == "autocast only"
    with pytest.raises(ValueError, match=r"fp16\n.*'safe', 'autocast only' or 'no'"):
        CheckpointInfo(**facts, fp16="yes")
