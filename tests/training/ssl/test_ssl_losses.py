"""Each method's loss and gradient against a slow transcription of its paper and against lightly, on the same tensors.

The backbone only flattens and the projection head is taken out, so the views given are the embeddings.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, SwaVLoss
from torch import nn

from cassava_kit.training.ssl.byol import BYOL
from cassava_kit.training.ssl.methods import configure
from cassava_kit.training.ssl.moco import MoCo
from cassava_kit.training.ssl.simclr import SimCLR
from cassava_kit.training.ssl.swav import SwAV

N, SIDE = 6, 8
DIM = 3 * SIDE * SIDE
SMALL = {"image_size": SIDE, "batch_size": N, "output_dim": DIM, "hidden_dim": 16, "head_norm": "none"}
PAIR = ({"size": SIDE, "count": 2},)


def embeddings(*seeds):
    """One float32 batch (N, 3, 8, 8) a seed, which wants its gradient."""
    return [torch.randn(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in seeds]


def rows(x):
    return x.detach().flatten(1).double()


def cosine(a, b):
    return float((a @ b) / (a.norm() * b.norm()))


def gradients(loss, views):
    return torch.autograd.grad(loss, views, allow_unused=True)


def assert_same(ours, theirs):
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def assert_same_gradient(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a is not None and b is not None
        assert float((a - b).norm() / b.norm()) <= 1e-6


def simclr(temperature=0.1):
    module = SimCLR(configure("simclr", **SMALL, views=PAIR, temperature=temperature), nn.Flatten())
    module.projection_head = nn.Identity()
    return module


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_is_the_papers_algorithm_1(temperature):
    x0, x1 = embeddings(0, 1)
    z = [vector for pair in zip(rows(x0), rows(x1), strict=True) for vector in pair]
    total = 0.0
    for i in range(2 * N):
        partner = i + 1 if i % 2 == 0 else i - 1
        others = [math.exp(cosine(z[i], z[k]) / temperature) for k in range(2 * N) if k != i]
        total += -math.log(math.exp(cosine(z[i], z[partner]) / temperature) / sum(others))
    assert_same(simclr(temperature).compute_loss([x0, x1]), total / (2 * N))


def test_simclr_is_lightlys_with_its_gradient():
    views = embeddings(0, 1)
    ours = simclr().compute_loss(views)
    theirs = NTXentLoss(temperature=0.1)(*(v.flatten(1) for v in views))
    assert_same(ours, theirs)
    assert_same_gradient(gradients(ours, views), gradients(theirs, views))


def moco(queue_size=10, **settings):
    config = configure("moco", **SMALL, views=PAIR, queue_size=queue_size, bn_groups=1, **settings)
    module = MoCo(config, nn.Flatten())
    module.projection_head, module.momentum_projection_head = nn.Identity(), nn.Identity()
    return module


def test_moco_is_the_papers_algorithm_1():
    module, (x0, x1) = moco(), embeddings(0, 1)
    negatives = module.queue.bank.double()
    total = 0.0
    for q, k in zip(rows(x0), rows(x1), strict=True):
        logits = [cosine(q, k) / 0.2, *(cosine(q, n) / 0.2 for n in negatives)]
        total += -math.log(math.exp(logits[0]) / sum(map(math.exp, logits)))
    assert_same(module.compute_loss([x0, x1]), total / N)


def test_moco_is_lightlys_with_its_gradient_and_only_queries_learn():
    module, views = moco(), embeddings(0, 1)
    theirs_criterion = NTXentLoss(temperature=0.2, memory_bank_size=(10, DIM))
    theirs_criterion.memory_bank.bank = module.queue.bank.clone()
    ours, theirs = module.compute_loss(views), theirs_criterion(views[0].flatten(1), views[1].detach().flatten(1))
    assert_same(ours, theirs)
    assert gradients(ours, [views[1]]) == (None,)
    ours = module.compute_loss(views)
    assert_same_gradient(gradients(ours, views[:1]), gradients(theirs, views[:1]))


def test_moco_takes_keys_in_after_the_step_in_the_order_of_the_batch():
    module, views = moco(), embeddings(0, 1)
    before = module.queue.bank.clone()
    module.compute_loss(views)
    assert torch.equal(module.queue.bank, before)
    module.on_train_batch_end(None, None, 0)
    keys = nn.functional.normalize(views[1].detach().flatten(1), dim=1)
    assert torch.allclose(module.queue.bank[:N], keys)
    assert torch.equal(module.queue.bank[N:], before[N:])


def test_symmetric_moco_is_the_mean_of_both_directions():
    views = embeddings(0, 1)
    both, one = moco(symmetric=True), moco()
    one.queue.bank.copy_(both.queue.bank)
    expected = (one.compute_loss(views) + one.compute_loss(views[::-1])) / 2
    assert_same(both.compute_loss(views), expected)


class Recorder(nn.Module):
    """A network that notes in which groups images pass it: batch statistics are theirs."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(DIM)
        self.groups = []

    def forward(self, x):
        self.groups.append([int(value) for value in x[:, 0, 0, 0]])
        return self.norm(x.flatten(1))


def test_moco_shuffles_keys_between_its_batchnorm_groups_and_puts_them_back():
    backbone = Recorder()
    config = configure("moco", **SMALL | {"batch_size": 64}, views=PAIR, queue_size=64, bn_groups=4)
    module = MoCo(config, backbone)
    images = torch.randn(64, 3, SIDE, SIDE)
    images[:, 0, 0, 0] = torch.arange(64)
    backbone.groups.clear()
    module.momentum_backbone.groups.clear()
    module.compute_loss([images, images])
    assert backbone.groups == [list(range(start, start + 16)) for start in range(0, 64, 16)]
    shuffled = module.momentum_backbone.groups
    assert [len(group) for group in shuffled] == [16] * 4
    order = [image for group in shuffled for image in group]
    assert sorted(order) == list(range(64)) and order != list(range(64))
    place = {image: group for group in range(4) for image in shuffled[group]}
    module.momentum_projection_head = nn.Flatten()
    module.momentum_backbone.forward = lambda x: x
    assert torch.allclose(module.encode_keys(images), nn.functional.normalize(images.flatten(1), dim=1))
    assert len({place[image] for image in range(16)}) > 1


def byol(**settings):
    config = configure("byol", **SMALL, views=({"size": SIDE}, {"size": SIDE}), predictor_dim=12, **settings)
    module = BYOL(config, nn.Flatten())
    module.projection_head, module.momentum_projection_head = nn.Identity(), nn.Identity()
    return module


def test_byol_is_the_papers_equation_2():
    module, (x0, x1) = byol(), embeddings(0, 1)
    total = 0.0
    for a, b in ((x0, x1), (x1, x0)):
        p = module.prediction_head(a.detach().flatten(1)).detach().double()
        for prediction, z in zip(p, rows(b), strict=True):
            difference = prediction / prediction.norm() - z / z.norm()
            total += float(difference @ difference)
    assert_same(module.compute_loss([x0, x1]), total / N)


def test_byol_is_lightlys_times_its_factor_with_its_gradient():
    module, views = byol(), embeddings(0, 1)
    criterion = NegativeCosineSimilarity()
    p0, p1 = (module.prediction_head(view.flatten(1)) for view in views)
    z0, z1 = (view.detach().flatten(1) for view in views)
    theirs = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
    ours = module.compute_loss(views)
    assert_same(ours, 4 + 4 * theirs)
    assert_same_gradient(gradients(ours, views), gradients(4 * theirs, views))


def swav(**settings):
    small = {"size": SIDE, "count": 3, "scale": (0.05, 0.14)}
    defaults = {"prototypes": 5, "queue_size": 0, "queue_from_epoch": 0, "views": ({"size": SIDE, "count": 2}, small)}
    module = SwAV(configure("swav", **SMALL, **defaults | settings), nn.Flatten())
    module.projection_head = nn.Identity()
    return module


def test_swav_is_the_papers_pseudocode():
    module, views = swav(), embeddings(0, 1, 2, 3, 4)
    c = module.prototypes.heads[0].weight.detach().double()
    c = c / c.norm(dim=1, keepdim=True)
    scores = [[[cosine(z, prototype) for prototype in c] for z in rows(view)] for view in views]
    total = 0.0
    for i in range(2):
        q = torch.tensor([[math.exp(s / 0.05) for s in row] for row in scores[i]], dtype=torch.float64)
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(dim=0, keepdim=True) / 5
            q = q / q.sum(dim=1, keepdim=True) / N
        q = q * N
        for v in range(5):
            if v == i:
                continue
            for b in range(N):
                exp = [math.exp(s / 0.1) for s in scores[v][b]]
                total -= sum(float(q[b, k]) * math.log(exp[k] / sum(exp)) for k in range(5)) / N / 4 / 2
    assert_same(module.compute_loss(views), total)


def test_swav_is_lightlys_with_its_gradient():
    module, views = swav(), embeddings(0, 1, 2, 3, 4)
    ours = module.compute_loss(views)
    scores = [module.prototypes(nn.functional.normalize(view.flatten(1), dim=1)) for view in views]
    theirs = SwaVLoss(temperature=0.1)(scores[:2], scores[2:])
    assert_same(ours, theirs)
    assert_same_gradient(gradients(ours, views), gradients(theirs, views))


def test_swav_with_its_queue_is_lightlys():
    module, views = swav(queue_size=2 * N, epochs=20), embeddings(0, 1, 2, 3, 4)
    without = module.compute_loss(views)
    for queue in module.queues:
        queue.push(nn.functional.normalize(torch.randn(2 * N, DIM), dim=1))
    assert module.queue_in_use
    scores = [module.prototypes(nn.functional.normalize(view.flatten(1), dim=1)) for view in views]
    queued = [module.prototypes(queue.bank) for queue in module.queues]
    theirs = SwaVLoss(temperature=0.1)(scores[:2], scores[2:], queued)
    ours = module.compute_loss(views)
    assert_same(ours, theirs)
    assert float(ours) != pytest.approx(float(without), rel=1e-4)


def test_swavs_queues_are_filled_from_their_epoch_on_after_the_gradient():
    module, views = swav(queue_size=2 * N, queue_from_epoch=3, epochs=20), embeddings(0, 1, 2, 3, 4)
    for epoch, pushed in ((2, 0), (3, N), (4, 2 * N)):
        module.trainer = SimpleNamespace(current_epoch=epoch)
        module.compute_loss(views)
        before = [int(queue.pushed) for queue in module.queues]
        module.on_train_batch_end(None, None, 0)
        assert [int(queue.pushed) for queue in module.queues] == [pushed] * 2
        assert before == [max(pushed - N, 0)] * 2, "not before the gradient"
    z = nn.functional.normalize(views[1].detach().flatten(1), dim=1)
    assert torch.allclose(module.queues[1].bank[:N], z, atol=1e-6) and module.queue_in_use


def test_prototypes_are_unit_directions():
    module = swav()
    module.prototypes.heads[0].weight.data.mul_(7)
    module.compute_loss(embeddings(0, 1, 2, 3, 4))
    assert torch.allclose(module.prototypes.heads[0].weight.norm(dim=1), torch.ones(5), atol=1e-6)
    assert module.prototypes.heads[0].bias is None
