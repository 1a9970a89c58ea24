"""Frozen-feature evaluation: features are the model's, the cache never lies, probes find what is there."""

import math

import cv2
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from torch import nn

from cassava_kit.inference import features as features_module
from cassava_kit.inference.features import Pixels, extract_features, readable_features
from cassava_kit.training.linear import PENALTIES, choose_penalty, expand_classes, linear_probs
from cassava_kit.training.ssl.probe import KnnHalves, balanced_accuracy, balanced_answers, knn_probs

PIXELS = Pixels(16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture
def images(tmp_path):
    """70 BMPs of one size, more than a batch: every second one bright on the left, the others on the right."""
    rng, paths = np.random.default_rng(0), []
    for k in range(70):
        picture = rng.integers(0, 120, (20, 30, 3))
        picture[:, 15 * (k % 2) : 15 * (k % 2) + 15] += 100
        paths.append(tmp_path / f"{k:02d}.bmp")
        cv2.imwrite(str(paths[-1]), picture.astype(np.uint8))
    return paths


def backbone():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.Flatten())


def test_features_are_the_models_of_the_evaluation_pixels(images):
    from cassava_kit.data.images import load_image

    model = backbone().train()
    features = extract_features(model, images, PIXELS)
    assert features.shape == (70, 64) and features.dtype == np.float32
    assert model.training, "the mode is left as it was"
    assert float(model[1].running_mean.abs().sum()) == 0, "statistics do not move"
    model.eval()
    for row in (0, 65):
        x = torch.from_numpy(load_image(images[row], (16, 16))).permute(2, 0, 1)[None] / 255
        x = (x - torch.tensor(PIXELS.mean)[:, None, None]) / torch.tensor(PIXELS.std)[:, None, None]
        assert np.allclose(features[row], model(x)[0].detach().numpy(), atol=1e-5)


def test_the_cache_is_read_back_and_knows_what_it_is_of(images, tmp_path, monkeypatch):
    cache, model = tmp_path / "cache", backbone()
    first = extract_features(model, images, PIXELS, cache=cache)
    (kept,) = cache.iterdir()
    np.save(kept, first[None] + 1)
    assert np.array_equal(extract_features(model, images, PIXELS, cache=cache), first + 1)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1
    assert not np.array_equal(extract_features(model, images, PIXELS, cache=cache), first + 1)
    extract_features(model, images[:5], PIXELS, cache=cache)
    extract_features(model, images, Pixels(32, PIXELS.mean, PIXELS.std), cache=cache)
    cv2.imwrite(str(images[0]), np.zeros((20, 30, 3), dtype=np.uint8))
    changed = extract_features(model, images, PIXELS, cache=cache)
    assert len(list(cache.iterdir())) == 5
    assert np.array_equal(changed[1:], extract_features(model, images, PIXELS)[1:])
    monkeypatch.setattr("cassava_kit.data.images.PIXELS_VERSION", 0)  # other pixels of the same files
    extract_features(model, images, PIXELS, cache=cache)
    assert len(list(cache.iterdir())) == 6
    assert not np.array_equal(changed[0], first[0])


def test_chunks_are_cached_whatever_the_memory_format(images, tmp_path, monkeypatch):
    """From the second chunk on the weights are channels-last; those of a 1 x 1 convolution have odd strides then."""
    monkeypatch.setattr(features_module, "FEATURE_CHUNK", 30)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 1), nn.Flatten()).eval()
    first = readable_features(model, images, PIXELS, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3
    again = readable_features(model, images, PIXELS, cache=tmp_path / "cache")
    assert np.array_equal(first, again) and len(list((tmp_path / "cache").iterdir())) == 3
    assert np.allclose(first, extract_features(model, images, PIXELS), atol=1e-6)


def clusters(n, seed=0, spread_of=0.3):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = np.array([[3.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0]])
    return centres[labels] + rng.normal(0, spread_of, (n, 4)), labels


def test_knn_is_the_similarity_weighted_vote():
    train, labels = clusters(30, spread_of=2.0)
    test, _ = clusters(7, seed=1, spread_of=2.0)
    ours = knn_probs(train, labels, test, n_classes=3, k=5)
    for row, x in zip(ours, test, strict=True):
        cosines = train @ x / np.linalg.norm(train, axis=1) / np.linalg.norm(x)
        votes = np.zeros(3)
        for i in np.argsort(-cosines)[:5]:
            votes[labels[i]] += np.exp(cosines[i] / 0.1)
        assert np.allclose(row, votes / votes.sum(), atol=1e-6)


@pytest.mark.parametrize("probe", [knn_probs, linear_probs])
def test_probes_find_clusters_and_nothing_in_noise(probe):
    train, labels = clusters(90)
    test, truth = clusters(60, seed=1)
    probs = probe(train, labels, test, n_classes=5)
    assert probs.shape == (60, 5) and np.allclose(probs.sum(axis=1), 1) and not probs[:, 3:].any()
    assert np.mean(probs.argmax(axis=1) == truth) > 0.95
    noise = np.random.default_rng(2).normal(size=(150, 4))
    guess = probe(noise[:90], labels, noise[90:], n_classes=3)
    assert np.mean(guess.argmax(axis=1) == truth) < 0.6


def slow_choice(x, labels, n_folds):
    """The penalty by a plain loop: log loss of held-out rows, the scaling learnt on the others."""
    losses = {}
    for c in PENALTIES:
        parts = []
        for train, test in StratifiedKFold(n_folds, shuffle=True, random_state=0).split(x, labels):
            mean, std = x[train].mean(axis=0), x[train].std(axis=0)
            model = LogisticRegression(C=c, max_iter=500).fit((x[train] - mean) / std, labels[train])
            p = model.predict_proba((x[test] - mean) / std)
            truth = np.searchsorted(model.classes_, labels[test])
            parts.append(-np.mean([math.log(row[k]) for row, k in zip(p, truth, strict=True)]))
        losses[c] = np.mean(parts)
    return min(losses, key=losses.get)


@pytest.mark.parametrize("spread_of", [0.3, 3.0, 12.0])
def test_the_linear_probe_chooses_its_penalty_without_the_rows_asked(spread_of):
    train, labels = clusters(90, spread_of=spread_of)
    test, _ = clusters(60, seed=1, spread_of=spread_of)
    c = choose_penalty(train, labels)
    assert c == slow_choice(train, labels, 3)
    scaler = StandardScaler().fit(train)
    expected = LogisticRegression(C=c, max_iter=500).fit(scaler.transform(train), labels)
    ours = linear_probs(train, labels, test, n_classes=3)
    assert np.allclose(ours, expected.predict_proba(scaler.transform(test)), atol=1e-6)
    assert np.allclose(linear_probs(train, labels, test, n_classes=3, c=c), ours)


def test_the_choice_of_the_penalty_moves_with_the_data():
    assert len({choose_penalty(*clusters(90, spread_of=s)) for s in (0.3, 12.0)}) == 2


def test_rare_classes_leave_the_choice_to_the_others():
    x, labels = clusters(90)
    x, labels = np.r_[x, x[:1] + 9], np.r_[labels, 4]
    assert choose_penalty(x, labels) == slow_choice(x[:90], labels[:90], 3)
    few = np.array([0, 0, 0, 1, 1, 2])
    assert choose_penalty(x[:6], few) == slow_choice(x[:5], few[:5], 2)
    assert choose_penalty(x[:3], np.arange(3)) == 0.01, "one row a class: nothing to choose by"
    probs = linear_probs(x[:3], np.arange(3), x[3:6], n_classes=5)
    assert np.allclose(probs.sum(axis=1), 1)


def test_classes_that_were_not_seen_have_no_probability():
    assert np.array_equal(expand_classes(np.array([[0.2, 0.8]]), np.array([1, 4]), 5), [[0, 0.2, 0, 0, 0.8]])


def test_balanced_answers_undo_the_shares():
    probs = np.array([[0.7, 0.3], [0.95, 0.05]])
    assert list(balanced_answers(probs, np.array([0] * 8 + [1] * 2))) == [1, 0]
    assert balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])) == 0.5


def test_the_probe_halves_each_class_and_skips_unknown_labels(images):
    labels = np.array([-1 if k < 10 else k % 2 for k in range(70)])
    probe = KnnHalves(images, labels, PIXELS)
    assert len(probe.labels) == 60 and (probe.labels >= 0).all()
    assert [int((probe.labels[probe.bank] == k).sum()) for k in range(2)] == [15, 15]
    plain, balanced = probe.score(nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(12, 12, bias=False)))
    assert plain == pytest.approx(balanced) and plain > 0.9
    assert len(KnnHalves(images, labels, PIXELS, limit=20).labels) == 20
    with pytest.raises(ValueError, match="two classes"):
        KnnHalves(images, np.zeros(70, dtype=int), PIXELS)
