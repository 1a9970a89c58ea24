"""Queue, Sinkhorn, momentum schedule and heads against slow transcriptions and lightly."""

import math
from collections import deque

import pytest
import torch
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead, SimCLRProjectionHead
from torch import nn

from cassava_kit.training.optimizers import make_optimizer, parameter_groups
from cassava_kit.training.ssl.parts import Queue, momentum_at, momentum_copy, sinkhorn, with_norm


@pytest.mark.parametrize("batches", [[3, 3, 3, 3], [4, 4], [5, 2, 7, 1, 10, 23], [10], [11, 3], [1] * 25])
def test_the_queue_holds_the_last_embeddings_in_order(batches):
    queue, reference = Queue(10, 2), deque(maxlen=10)
    n = 0
    for size in batches:
        rows = torch.arange(n, n + size, dtype=torch.float)[:, None].expand(-1, 2)
        n += size
        queue.push(rows)
        reference.extend(rows[:, 0].tolist())
        oldest_first = queue.bank.roll(-(int(queue.pushed) % 10), dims=0)
        assert oldest_first[-min(n, 10) :, 0].tolist() == list(reference)
        assert queue.full == (n >= 10)


def test_the_queue_starts_with_unit_vectors_and_is_saved():
    queue = Queue(16, 8)
    assert torch.allclose(queue.bank.norm(dim=1), torch.ones(16))
    queue.push(torch.ones(3, 8))
    other = Queue(16, 8)
    other.load_state_dict(queue.state_dict(), strict=True)
    assert torch.equal(other.bank, queue.bank)
    assert int(other.pushed) == 3


def slow_sinkhorn(scores, eps, iterations):
    """The pseudocode of SwAV's appendix, number by number, in float64."""
    n, k = scores.shape
    q = [[math.exp(float(scores[b, j]) / eps) for b in range(n)] for j in range(k)]
    total = sum(map(sum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        q = [[value / sum(row) / k for value in row] for row in q]
        columns = [sum(q[j][b] for j in range(k)) for b in range(n)]
        q = [[q[j][b] / columns[b] / n for b in range(n)] for j in range(k)]
    return torch.tensor([[q[j][b] * n for j in range(k)] for b in range(n)])


@pytest.mark.parametrize("iterations", [1, 3, 7])
def test_sinkhorn_is_the_papers_and_lightlys(iterations):
    torch.manual_seed(0)
    z, c = (nn.functional.normalize(torch.randn(n, 8, dtype=torch.float64), dim=1) for n in (12, 5))
    scores = z @ c.T
    ours = sinkhorn(scores, eps=0.05, iterations=iterations)
    assert torch.allclose(ours, slow_sinkhorn(scores, 0.05, iterations), atol=1e-6)
    assert torch.allclose(ours, lightly_sinkhorn(scores.float(), iterations=iterations, epsilon=0.05), atol=1e-6)


def test_sinkhorn_sums_as_it_must():
    torch.manual_seed(0)
    scores = torch.rand(64, 8)
    q = sinkhorn(scores, eps=0.05, iterations=3)
    assert torch.allclose(q.sum(dim=1), torch.ones(64), atol=1e-5)
    many = sinkhorn(scores, eps=0.05, iterations=200)
    assert torch.allclose(many.sum(dim=0), torch.full((8,), 8.0), atol=1e-3)
    plain = torch.softmax(scores / 0.05, dim=1).sum(dim=0)
    assert (q.sum(dim=0) - 8).abs().max() < (plain - 8).abs().max() / 4


def test_sinkhorn_is_finite_where_the_published_form_is_not():
    torch.manual_seed(0)
    half = (
        nn.functional.normalize(torch.randn(32, 16), dim=1).half()
        @ nn.functional.normalize(torch.randn(16, 9), dim=0).half()
    )
    assert not lightly_sinkhorn(half).isfinite().all()
    assert torch.allclose(sinkhorn(half), sinkhorn(half.double()), atol=1e-6)
    large = 100 * torch.randn(32, 9)
    assert not lightly_sinkhorn(large).isfinite().all()
    assert sinkhorn(large).isfinite().all()
    assert torch.allclose(sinkhorn(large).sum(dim=1), torch.ones(32))


def test_momentum_runs_from_start_to_end_on_a_cosine():
    assert momentum_at(0, 1000, 0.996, 1.0) == pytest.approx(0.996)
    assert momentum_at(500, 1000, 0.996, 1.0) == pytest.approx(0.998)
    assert momentum_at(1000, 1000, 0.996, 1.0) == 1.0
    for k in range(0, 1000, 37):
        paper = 1 - (1 - 0.996) * (math.cos(math.pi * k / 1000) + 1) / 2
        assert momentum_at(k, 1000, 0.996, 1.0) == pytest.approx(paper, abs=1e-12)
    assert momentum_at(123, 1000, 0.999, 0.999) == pytest.approx(0.999)


def test_a_momentum_copy_is_equal_apart_and_not_learnt():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin = momentum_copy(module)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))
    assert not any(p.requires_grad for p in twin.parameters())
    assert {p.data_ptr() for p in module.parameters()}.isdisjoint(p.data_ptr() for p in twin.parameters())


def shape_of(head):
    """Layers as (kind, in, out, bias)."""
    return [
        (type(layer).__name__, layer.in_features, layer.out_features, layer.bias is not None)
        if isinstance(layer, nn.Linear)
        else (type(layer).__name__,)
        for layer in head.layers
    ]


def test_the_predictor_has_the_papers_layers():
    head = with_norm(BYOLPredictionHead(256, 4096, 256), "batch")
    assert shape_of(head) == [("Linear", 256, 4096, False), ("BatchNorm1d",), ("ReLU",), ("Linear", 4096, 256, True)]
    head = with_norm(BYOLProjectionHead(2048, 4096, 256), "batch")
    assert shape_of(head) == [("Linear", 2048, 4096, False), ("BatchNorm1d",), ("ReLU",), ("Linear", 4096, 256, True)]


def test_a_head_without_norm_has_biases_instead_and_ignores_the_batch():
    head = with_norm(SimCLRProjectionHead(6, 8, 4), "none")
    assert shape_of(head) == [("Linear", 6, 8, True), ("ReLU",), ("Linear", 8, 4, True)]
    layered = with_norm(SimCLRProjectionHead(6, 8, 4), "layer")
    x = torch.randn(5, 6)
    for one in (head, layered):
        assert torch.allclose(one(x)[:2], one(x[:2]), atol=1e-6)
    normed = with_norm(SimCLRProjectionHead(6, 8, 4), "batch")
    assert not torch.allclose(normed(x)[:2], normed(x[:2]), atol=1e-3)


def test_biases_and_norms_have_no_decay_and_frozen_parameters_do_not_move():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2))
    module[4].requires_grad_(False)
    plain, decayed = parameter_groups(module, lr=1.0, weight_decay=0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(module[0].weight), id(module[3].weight)]
    assert {id(p) for p in plain["params"]} == {
        id(p) for p in (module[0].bias, *module[1].parameters(), module[3].bias)
    }


def test_lars_scales_what_is_decayed_alone():
    weight, bias = (nn.Parameter(torch.full((4,), 2.0)) for _ in range(2))
    groups = [{"params": [weight], "weight_decay": 1e-6}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = make_optimizer(groups, "lars", lr=0.5)
    weight.grad, bias.grad = torch.full((4,), 8.0), torch.full((4,), 8.0)
    optimizer.step()
    assert torch.allclose(bias, torch.full((4,), 2 - 0.5 * 8.0))
    trust = 0.001 * 4 / (16 + 4 * 1e-6)  # |w| / |g|, times LARS's coefficient
    assert torch.allclose(weight, torch.full((4,), 2 - 0.5 * trust * 8.0), atol=1e-6)
