"""Fused models answer as before, and every pair of ordinary timm networks is found."""

import pytest
import timm
import torch
from torch import nn

from cassava_kit.inference import fuse
from cassava_kit.inference.fuse import fuse_conv_bn


def shaken(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.3, 3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet", "mobilenetv3_small_050"])
def test_every_norm_of_a_timm_cnn_is_folded_and_nothing_changes(name: str) -> None:
    model = shaken(timm.create_model(name, num_classes=5))
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        before, n = model(x), norms(model)
        assert fuse_conv_bn(model, (64, 64)) == n > 0
        assert norms(model) == 0
        assert torch.allclose(model(x), before, atol=1e-5 * float(before.abs().max()) + 1e-6)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_nfnet"])
def test_networks_without_pairs_are_left_alone(name: str) -> None:
    model = timm.create_model(name, num_classes=5, **({"img_size": 64} if name == "test_vit" else {})).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        assert fuse_conv_bn(model, (64, 64)) == 0
        assert torch.equal(model(x), before)


class TwoReaders(nn.Module):
    """One convolution's output is read by two norms and by the sum: it must not be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return (self.a(y) + self.b(y)).mean((2, 3))


class Residual(nn.Module):
    """The convolution's own output is used beside the norm's: folding would change the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return (y + self.norm(y)).mean((2, 3))


@pytest.mark.parametrize("kind", [TwoReaders, Residual])
def test_a_convolution_with_other_readers_is_put_back(kind: type[nn.Module]) -> None:
    model = shaken(kind())
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
        assert fuse_conv_bn(model, (16, 16)) == 0
        assert torch.equal(model(x), before)


class Mixed(nn.Module):
    """One convolution with one reader, one with two."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.norm, self.bad = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), TwoReaders()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bad(self.norm(self.good(x)))


@pytest.mark.parametrize("kind", [TwoReaders, Residual])
def test_who_reads_a_convolution_is_seen_where_the_norm_changes_nothing(kind: type[nn.Module]) -> None:
    fresh, trained = kind().eval(), shaken(kind())  # of a fresh norm layer the folded network's answer is the same
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = trained(x)
        assert fuse_conv_bn(fresh, (16, 16), architecture=kind) == 0
        assert fuse_conv_bn(trained, (16, 16), architecture=kind) == 0
        assert torch.equal(trained(x), before)


def test_an_architecture_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "KNOWN", {})
    calls: list[str] = []
    x = torch.rand(2, 3, 32, 32)
    for seed, name in enumerate(("test_resnet", "test_resnet", "test_vit", "test_resnet")):
        torch.manual_seed(seed)
        model = shaken(timm.create_model(name, num_classes=5, **({"img_size": 32} if name == "test_vit" else {})))
        with torch.no_grad():
            before, n = model(x), norms(model)
            with monkeypatch.context() as patch:
                real = type(model).forward
                patch.setattr(type(model), "forward", lambda m, y, real=real, n=name: calls.append(n) or real(m, y))
                assert fuse_conv_bn(model, (32, 32), architecture=name) == n
            assert torch.allclose(model(x), before, atol=1e-5 * float(before.abs().max()) + 1e-6)
    assert calls == ["test_resnet", "test_resnet"]  # before and after the first fusion; a ViT has no norm to fold


def test_known_pairs_leave_weights_that_are_no_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "KNOWN", {})
    good, broken = (shaken(timm.create_model("test_resnet", num_classes=5)) for _ in range(2))
    with torch.no_grad():
        assert fuse_conv_bn(good, (32, 32), architecture="r") > 0
        next(broken.parameters())[0] = torch.nan
        n = norms(broken)
        assert fuse_conv_bn(broken, (32, 32), architecture="r") == 0 and norms(broken) == n


def test_a_pair_that_must_not_be_folded_does_not_cost_the_others() -> None:
    model = shaken(Mixed())
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
        assert fuse_conv_bn(model, (16, 16)) == 1
        assert isinstance(model.norm, nn.Identity)
        assert torch.allclose(model(x), before, atol=1e-5)


def test_a_convolution_that_standardises_its_weight_does_not_cost_the_others() -> None:
    from timm.layers import StdConv2d

    layers = (StdConv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model = shaken(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        before = model(x)
        assert fuse_conv_bn(model, (16, 16)) == 1 and isinstance(model[1], nn.BatchNorm2d)
        assert torch.allclose(model(x), before, atol=1e-5)


def test_a_wrong_fusion_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "_fold", lambda conv, norm: None)
    model = shaken(timm.create_model("test_resnet", num_classes=5))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        assert fuse_conv_bn(model, (32, 32)) == 0
        assert torch.equal(model(x), before)
