"""Whole runs in seconds: export, metrics, resume, momentum, freezing, and what is refused before slow work."""

import itertools
import json
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from processes import run_python, start_python

from cassava_kit.errors import UserError
from cassava_kit.files import write_json
from cassava_kit.models.checkpoint import CheckpointInfo, load_model, read_info, save_checkpoint
from cassava_kit.settings import replace
from cassava_kit.training.diverged import DivergedError
from cassava_kit.training.ssl.methods import SSL_METHODS, configure, load_method, make_ssl_module
from cassava_kit.training.ssl.module import SSLModule
from cassava_kit.training.ssl.pretrain import pretrain
from cassava_kit.training.ssl.run_folder import describe_images, describe_settings
from cassava_kit.training.trainer import make_trainer

VIT = {
    "backbone": "vit_tiny_patch16_224",
    "model_args": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1},
}
RESNET = {"backbone": "resnet18", "model_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}
SHARED = {
    **VIT,
    "image_size": 16,
    "store_size": (16, 20),
    "epochs": 3,
    "warmup_epochs": 0,
    "batch_size": 8,
    "hidden_dim": 16,
    "output_dim": 8,
    "watch_every": 2,
    "num_workers": 0,
    "accelerator": "cpu",
}
PER_METHOD = {
    "simclr": {"views": ({"size": 16, "count": 2},)},
    "moco": {"views": ({"size": 16, "count": 2},), "queue_size": 20, "bn_groups": 2},
    "byol": {"views": ({"size": 16}, {"size": 16, "solarize_prob": 0.2}), "predictor_dim": 16},
    "swav": {
        "views": ({"size": 16, "count": 2}, {"size": 16, "count": 2, "scale": (0.1, 0.3)}),
        "prototypes": 6,
        "queue_size": 16,
        "queue_from_epoch": 1,
    },
}


def tiny(method, **settings):
    return configure(method, **{**SHARED, **PER_METHOD[method], **settings})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """26 small pictures of two kinds: bright with dark spots, and dark with bright stripes."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = []
    for k in range(26):
        picture = rng.integers(160, 255, (24, 32, 3)) if k % 2 else rng.integers(0, 90, (24, 32, 3))
        picture[:: 2 + k % 3] = 255 - picture[:: 2 + k % 3]
        paths.append(folder / f"{k:02d}.png")
        cv2.imwrite(str(paths[-1]), picture.astype(np.uint8))
    return paths


@pytest.mark.parametrize("method", SSL_METHODS)
def test_a_run_exports_a_plain_timm_backbone(method, images, tmp_path):
    import timm

    config = tiny(method)
    before = make_seeded(config).backbone.state_dict()
    path = pretrain(config, images, tmp_path)
    info = read_info(path)
    assert (info.model, info.n_classes, info.input_size, info.config["n_images"]) == (config.backbone, 0, (16, 16), 26)
    assert info.config["method"] == method and info.config["pretrain"] == config.model_dump(mode="json")
    plain = timm.create_model(config.backbone, pretrained=False, num_classes=0, **config.model_args)
    plain.load_state_dict(load_model(path)[0].state_dict(), strict=True)
    moved = [name for name, value in load_model(path)[0].state_dict().items() if not torch.equal(value, before[name])]
    assert "blocks.0.attn.qkv.weight" in moved
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4 and rows[0].startswith("epoch,step,loss,lr")
    assert [float(row.split(",")[1]) for row in rows[1:]] == [3, 6, 9]
    assert all(np.isfinite(float(row.split(",")[2])) for row in rows[1:])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "backbone.safetensors",
        "config.json",
        "last.ckpt",
        "metrics.csv",
    ]


def make_seeded(config):
    torch.manual_seed(config.seed)
    return make_ssl_module(config)


def weights(path):
    return load_model(path)[0].state_dict()


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class KilledError(RuntimeError):
    """Stands in for a kill."""


class Kill(L.Callback):
    """Ends a run in the middle of its second epoch."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            raise KilledError


def add_callback(monkeypatch, callback):
    """Every trainer made from now on has this callback as well."""
    monkeypatch.setattr(
        "cassava_kit.training.trainer.make_trainer",
        lambda config, callbacks, **options: make_trainer(config, [*callbacks, callback], **options),
    )


@pytest.mark.parametrize("method", SSL_METHODS)
@pytest.mark.parametrize("backbone", [VIT, RESNET], ids=["vit", "resnet"])
def test_a_resumed_run_equals_an_unbroken_one(method, backbone, images, tmp_path, monkeypatch):
    config = tiny(method, **backbone, accumulate=1)
    labels = np.arange(26) % 2
    whole = pretrain(config, images, tmp_path / "whole", labels=labels)

    with monkeypatch.context() as broken:
        add_callback(broken, Kill())
        with pytest.raises(KilledError):
            pretrain(config, images, tmp_path / "broken", labels=labels)
    assert not (tmp_path / "broken" / "backbone.safetensors").exists()
    resumed = pretrain(config, images, tmp_path / "broken", labels=labels)
    assert_equal_states(weights(whole), weights(resumed))
    states = [torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("whole", "broken")]
    assert_equal_states(*(state["state_dict"] for state in states))
    assert states[0]["global_step"] == states[1]["global_step"] == 9
    tables = [pd.read_csv(tmp_path / run / "metrics.csv").drop(columns="seconds") for run in ("whole", "broken")]
    assert tables[0].equals(tables[1]) and {"loss", "std", "knn_balanced"} <= set(tables[0])


@pytest.mark.slow
def test_a_killed_process_goes_on(images, tmp_path):
    config = tiny("moco", epochs=40)
    code = f"""
        import sys
        from pathlib import Path
        from cassava_kit.training.ssl.methods import configure
        from cassava_kit.training.ssl.pretrain import pretrain
        config = configure(**{json.loads(config.model_dump_json())!r})
        pretrain(config, sorted(Path({str(images[0].parent)!r}).glob("*.png")), Path(sys.argv[1]))
    """
    run = ["-c", textwrap.dedent(code)]
    assert run_python([*run, tmp_path / "whole"]).returncode == 0
    process = start_python([*run, tmp_path / "killed"])
    process.wait_until((tmp_path / "killed" / "last.ckpt").is_file)
    process.kill()
    assert not (tmp_path / "killed" / "backbone.safetensors").exists()
    assert run_python([*run, tmp_path / "killed"]).returncode == 0
    assert_equal_states(
        weights(tmp_path / "whole" / "backbone.safetensors"), weights(tmp_path / "killed" / "backbone.safetensors")
    )


def test_a_complete_run_returns_at_once_and_another_is_refused(images, tmp_path, monkeypatch):
    config = tiny("simclr", epochs=1)
    path = pretrain(config, images, tmp_path)
    written = path.stat().st_mtime_ns
    assert pretrain(config, images, tmp_path) == path and path.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="another configuration"):
        pretrain(replace(config, epochs=2), images, tmp_path)
    with pytest.raises(ValueError, match="another configuration"):
        pretrain(config, images[1:], tmp_path)


def test_a_complete_run_is_taken_without_lightning(images, tmp_path):
    """It takes seconds to import, which a second `ensemble` would wait for."""
    config = tiny("simclr", epochs=1)
    pretrain(config, images, tmp_path)
    code = f"""
    import sys
    from pathlib import Path
    from cassava_kit.training.ssl.methods import configure
    from cassava_kit.training.ssl.pretrain import pretrain
    config = configure(**{config.model_dump(mode="json")})
    pretrain(config, list(map(Path, {list(map(str, images))})), Path({str(tmp_path)!r}))
    print("lightning" in sys.modules, "lightly" in sys.modules, "timm" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.stdout == "False False False\n", done.stderr


def test_what_the_folder_and_the_weights_say_is_refused_before_the_images_are_read(images, tmp_path, monkeypatch):
    config = tiny("simclr")
    write_json(tmp_path / "run" / "config.json", {**describe_settings(config, None), "images": {}})
    (tmp_path / "run" / "backbone.safetensors").write_bytes(b"x")
    monkeypatch.setattr("cassava_kit.training.ssl.pretrain.whole_images", lambda paths: pytest.fail("images were read"))
    with pytest.raises(UserError, match="another configuration"):
        pretrain(replace(config, temperature=0.3), images, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"no weights file none\.pth; `cassava-kit weights RECIPE` downloads"):
        pretrain(config, images, tmp_path / "new", init=Path("none.pth"))


def test_a_run_of_another_version_of_the_code_is_kept_or_replaced_as_asked(images, tmp_path, monkeypatch):
    config = tiny("simclr", epochs=1)
    path = pretrain(config, images, tmp_path)
    written = path.stat().st_mtime_ns
    config_file, step = tmp_path / "config.json", SSLModule.training_step
    older = json.loads(config_file.read_text()) | {"code": "0" * 64}
    config_file.write_text(json.dumps(older))
    with pytest.raises(UserError, match="another version of the code; keep it with --keep, replace it with --replace"):
        pretrain(config, images, tmp_path)
    assert pretrain(config, images, tmp_path, existing="keep").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="another configuration"):
        pretrain(replace(config, epochs=2), images, tmp_path, existing="keep")
    assert json.loads(config_file.read_text()) == older and path.stat().st_mtime_ns == written
    steps = []
    monkeypatch.setattr(SSLModule, "training_step", lambda *given: steps.append(1) or step(*given))
    pretrain(config, images, tmp_path, existing="replace")
    assert steps and json.loads(config_file.read_text())["code"] != older["code"]


def test_a_run_knows_its_images_by_their_bytes(images, tmp_path):
    """As training does: another picture of the same name and size is another run, a copied folder is the same."""
    config = tiny("simclr", epochs=1)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for path in images:
            shutil.copy(path, tmp_path / folder / path.name)
    a, b = (sorted((tmp_path / folder).glob("*.png")) for folder in ("a", "b"))
    path = pretrain(config, a, tmp_path / "run")
    written = path.stat().st_mtime_ns
    assert pretrain(config, b, tmp_path / "run").stat().st_mtime_ns == written
    content = bytearray(b[3].read_bytes())
    content[len(content) // 2] ^= 1
    b[3].write_bytes(content)
    assert describe_images(b) != describe_images(a)
    with pytest.raises(UserError, match="another configuration"):
        pretrain(config, b, tmp_path / "run")


@pytest.mark.parametrize("method", SSL_METHODS)
def test_a_run_that_diverges_is_stopped_named_and_may_start_anew(method, images, tmp_path, monkeypatch):
    loss_of, calls = load_method(method).compute_loss, []

    def broken(self, views):
        calls.append(1)
        return loss_of(self, views) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(load_method(method), "compute_loss", broken)
    config, run = tiny(method), tmp_path / "run"
    for _ in range(2):  # the same command again says so at once
        with pytest.raises(DivergedError if len(calls) < 5 else UserError, match="epoch 2, step 2: the loss is not"):
            pretrain(config, images, run)
    assert len(calls) == 5
    assert not (run / "backbone.safetensors").exists() and (run / "failed.json").is_file()
    assert len((run / "metrics.csv").read_text().splitlines()) == 2, "one whole epoch, none of NaN"
    lower = replace(config, base_lr=config.base_lr / 2)
    assert pretrain(lower, images, run).is_file()
    assert len(calls) == 5 + 9, "from the first epoch on"
    assert sorted(p.name for p in run.iterdir()) == ["backbone.safetensors", "config.json", "last.ckpt", "metrics.csv"]
    monkeypatch.undo()
    assert_equal_states(weights(pretrain(lower, images, tmp_path / "whole")), weights(run / "backbone.safetensors"))


def test_a_run_starts_from_given_weights(images, tmp_path):
    first = pretrain(tiny("simclr", epochs=1), images, tmp_path / "first")
    module = make_ssl_module(tiny("byol"), init=first)
    assert_equal_states(module.backbone.state_dict(), weights(first))
    assert_equal_states(module.momentum_backbone.state_dict(), weights(first))
    with pytest.raises(FileNotFoundError):
        pretrain(tiny("byol"), images, tmp_path / "second", init=tmp_path / "nowhere.safetensors")


def test_a_vit_is_made_for_the_size_it_is_pretrained_at(images, tmp_path):
    small = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 1}
    path = pretrain(tiny("simclr", epochs=1, model_args=small), images, tmp_path)
    info = read_info(path)
    assert info.model_args["img_size"] == 16 and info.config["pretrain"]["model_args"] == small
    assert load_model(path)[0](torch.zeros(1, 3, 16, 16)).shape == (1, 16)


def test_a_backbone_says_whose_labels_its_first_weights_had_learnt(images, tmp_path):
    config = tiny("simclr", epochs=1)
    said = {"fold": 3, "n_splits": 5, "fold_hash": "ab" * 32, "competition": "cassava-leaf-disease-classification"}
    shape = {"input_size": (16, 16), "mean": (0.5,) * 3, "std": (0.5,) * 3, "model_args": config.model_args}
    info = CheckpointInfo(model=config.backbone, n_classes=5, recipe="vit", **said, **shape)
    save_checkpoint(tmp_path / "classifier.safetensors", make_ssl_module(config).backbone.state_dict(), info)
    first = pretrain(config, images, tmp_path / "first", init=tmp_path / "classifier.safetensors")
    again = pretrain(config, images, tmp_path / "again", init=first)
    for path in (first, again):
        header = read_info(path)
        assert (header.n_classes, header.fold, header.fold_hash) == (0, 3, "ab" * 32) and header.config["init"]
    plain = read_info(pretrain(config, images, tmp_path / "plain"))
    assert plain.fold_hash is None and "init" not in plain.config


class Watcher(L.Callback):
    """Notes networks after each optimizer step."""

    def __init__(self):
        self.states, self.gradients, self.steps = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step > (self.steps[-1] if self.steps else 0):
            self.steps.append(trainer.global_step)
            self.states.append(
                [
                    {k: v.clone() for k, v in net.state_dict().items()}
                    for pair in module.momentum_pairs()
                    for net in pair
                ]
            )
            self.gradients += [p.grad for _, follower in module.momentum_pairs() for p in follower.parameters()]


@pytest.mark.parametrize("method", ["byol", "moco"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_momentum_network_moves_by_its_schedule_once_a_step(method, accumulate, images, tmp_path, monkeypatch):
    from cassava_kit.training.ssl.parts import momentum_at

    config = tiny(method, **RESNET, epochs=4, accumulate=accumulate, momentum=0.6, momentum_end=0.9)
    config = replace(config, optimizer="sgd", base_lr=1.0)
    watcher = Watcher()
    add_callback(monkeypatch, watcher)
    start = [
        {k: v.clone() for k, v in net.state_dict().items()}
        for pair in make_seeded(config).momentum_pairs()
        for net in pair
    ]
    pretrain(config, images, tmp_path)
    steps = 12 // accumulate
    assert watcher.steps == list(range(1, steps + 1))
    before = start
    for k, state in enumerate(watcher.states):
        share = momentum_at(k, steps, 0.6, 0.9)
        for network, follower, earlier in ((state[0], state[1], before[1]), (state[2], state[3], before[3])):
            for name in (n for n in follower if n.endswith(("weight", "bias"))):
                expected = share * earlier[name] + (1 - share) * network[name]
                assert torch.allclose(follower[name], expected, rtol=1e-5, atol=1e-7), name
        before = state
    first, last = start[1], watcher.states[-1][1]
    assert (last["conv1.weight"] - first["conv1.weight"]).abs().max() > 1e-3
    assert not torch.equal(first["bn1.running_mean"], last["bn1.running_mean"]), "statistics move as well"
    assert watcher.gradients and all(gradient is None for gradient in watcher.gradients)


def test_prototypes_stand_still_at_first(images, tmp_path, monkeypatch):
    seen = []

    class Note(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append(module.prototypes.heads[0].weight.detach().clone())

    add_callback(monkeypatch, Note())
    config = tiny("swav", epochs=4, prototypes_frozen_epochs=2, base_lr=5.0)
    start = make_seeded(config).prototypes
    start.normalize()
    pretrain(config, images, tmp_path)
    assert torch.allclose(seen[0], start.heads[0].weight, atol=1e-6)
    assert torch.allclose(seen[1], seen[0], atol=1e-6)
    assert (seen[2] - seen[1]).abs().max() > 1e-4


def test_the_learning_rate_warms_up_and_falls_to_nothing(images, tmp_path):
    pretrain(tiny("simclr", epochs=6, warmup_epochs=2, base_lr=0.32), images, tmp_path)
    rates = [float(row.split(",")[3]) for row in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    assert rates[1] == pytest.approx(0.01, rel=0.02)
    assert rates[0] < rates[1] and rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] == 0


# Of the first losses. Over four seeds runs end below: at .87 to .93 (MoCo) and .04 to .40 of them. Without learning (a
# rate of 1e-9) they end at .999 to 1.000 (MoCo) and .97 to 1.8.
FALLS_TO = {"simclr": 0.6, "moco": 0.97, "byol": 0.6, "swav": 0.6}


@pytest.mark.slow
@pytest.mark.parametrize("method", SSL_METHODS)
def test_training_lowers_the_loss(method, tmp_path):
    """One batch of distinct pictures through hardly changed views: the loss tells learning and not the draws.

    Eight keys make MoCo's queue, which is full of real ones after the first step. Its keys follow slowly.
    """
    rng, paths = np.random.default_rng(0), []
    for k in range(8):
        paths.append(tmp_path / f"{k}.png")
        picture = rng.integers(0, 255, (3, 4, 3)).astype(np.uint8)
        cv2.imwrite(str(paths[-1]), cv2.resize(picture, (32, 24), interpolation=cv2.INTER_LINEAR))
    still = {
        "jitter_prob": 0,
        "grayscale_prob": 0,
        "blur_prob": 0,
        "solarize_prob": 0,
        "hflip_prob": 0,
        "scale": (1, 1),
    }
    own = {"moco": {"queue_size": 8}, "swav": {"queue_size": 8, "queue_from_epoch": 5}}.get(method, {})
    config = tiny(
        method,
        **own,
        views=tuple({**view, **still} for view in PER_METHOD[method]["views"]),
        epochs=40 if method == "moco" else 20,
        optimizer="adamw",
        base_lr=0.3,
        weight_decay=1e-4,
        on_collapse="warn",
    )
    pretrain(config, paths, tmp_path / "run")
    losses = pd.read_csv(tmp_path / "run" / "metrics.csv")["loss"].to_numpy()
    assert losses[-3:].mean() < FALLS_TO[method] * losses[1 if method == "moco" else 0 : 4].mean(), losses


def test_the_probe_is_reported_and_labels_do_not_reach_the_weights(images, tmp_path, capsys):
    config = tiny("simclr", epochs=2, knn_every=1)
    labels = np.arange(26) % 2
    labels[:4] = -1
    with_labels = pretrain(config, images, tmp_path / "a", labels=labels)
    assert "kNN balanced accuracy" in capsys.readouterr().out
    without = pretrain(config, images, tmp_path / "b")
    assert_equal_states(weights(with_labels), weights(without))
    header, *rows = (tmp_path / "a" / "metrics.csv").read_text().splitlines()
    at = header.split(",").index("knn_balanced")
    assert all(0 <= float(row.split(",")[at]) <= 1 for row in rows)
    with pytest.raises(ValueError, match="one an image"):
        pretrain(config, images, tmp_path / "c", labels=[0, 1])
    with pytest.raises(ValueError, match="two classes"):
        pretrain(config, images, tmp_path / "d", labels=[-1] * 26)


def test_broken_images_are_left_out(images, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 not an image")
    with pytest.warns(UserWarning, match="left out 1 of 27"):
        path = pretrain(tiny("simclr", epochs=1), [*images, broken], tmp_path / "run")
    assert read_info(path).config["n_images"] == 26


class Views(L.Callback):
    """Keeps the first view of every batch."""

    def __init__(self):
        self.first = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.first.append(batch[0].clone())


@pytest.mark.parametrize("store_size", [(16, 20), None])
def test_every_epoch_and_batch_draws_other_views(store_size, images, tmp_path, monkeypatch):
    """Of one image alone, so that no order can make the difference; the same seed draws the same views."""
    drawn = []
    for run, seed in (("a", 1), ("b", 1), ("c", 2)):
        with monkeypatch.context() as patched:
            views = Views()
            add_callback(patched, views)
            config = tiny("simclr", epochs=2, store_size=store_size, seed=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                pretrain(config, images[:1] * 16, tmp_path / run)
        assert len(views.first) == 4
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(views.first, 2))
        drawn.append(torch.stack(views.first))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_views_from_files_train_too(images, tmp_path):
    config = tiny("byol", epochs=1, store_size=None)
    assert pretrain(config, images, tmp_path).is_file()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 32}, "26 images do not fill one batch of 32"),
        ({"backbone": "resnet5000"}, "no model"),
        ({"image_size": 24}, "does not take 24 x 24 pixels"),
    ],
)
def test_what_cannot_work_is_refused_before_work(settings, says, images, tmp_path):
    with pytest.raises(ValueError, match=says):
        pretrain(tiny("simclr", **settings), images, tmp_path)


def test_a_run_that_was_refused_leaves_its_folder_to_the_corrected_one(images, tmp_path):
    with pytest.raises(ValueError, match="does not take 24 x 24 pixels"):
        pretrain(tiny("simclr", epochs=1, image_size=24), images, tmp_path)
    assert pretrain(tiny("simclr", epochs=1), images, tmp_path).is_file()


@pytest.mark.parametrize("changes", [{"on_collapse": "warn"}, {"watch_every": 1, "min_std": 0.01, "knn_every": 2}])
def test_settings_that_change_no_weight_leave_a_run_its_folder(changes, images, tmp_path):
    config = tiny("simclr", epochs=1)
    path = pretrain(config, images, tmp_path)
    assert pretrain(replace(config, **changes), images, tmp_path) == path


def test_the_largest_seed_trains(images, tmp_path):
    assert pretrain(tiny("moco", epochs=1, seed=2**32 - 1), images, tmp_path).is_file()


def test_accumulation_is_warned_of_where_it_does_not_enlarge_the_batch(images, tmp_path):
    assert "moco" in tiny("simclr", accumulate=2).accumulation_warning()
    assert "queue" in tiny("swav", accumulate=2).accumulation_warning()
    assert "BatchNorm" in tiny("byol", accumulate=2).accumulation_warning()
    assert tiny("byol", accumulate=2, head_norm="layer").accumulation_warning() is None
    assert tiny("moco", accumulate=2).accumulation_warning() is None, "its head has no norm"
    with pytest.warns(UserWarning, match="does not make a larger batch"):
        pretrain(tiny("simclr", epochs=1, accumulate=2), images, tmp_path / "summed")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pretrain(tiny("simclr", epochs=1), images, tmp_path / "plain")


def test_byol_accumulates_exactly_without_batchnorm():
    module = make_seeded(tiny("byol", head_norm="layer"))
    views = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    module.compute_loss(views).backward()
    whole = [p.grad.clone() for p in module.parameters() if p.requires_grad]
    module.zero_grad()
    for part in range(4):
        (module.compute_loss([view[4 * part : 4 * part + 4] for view in views]) / 4).backward()
    parts = [p.grad for p in module.parameters() if p.requires_grad]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, parts, strict=True))


def test_no_hydra():
    code = "import sys; from cassava_kit.training.ssl import byol, callbacks, loader, moco, pretrain, simclr, swav; "
    code += "print([name for name in sys.modules if name.split('.')[0] in ('hydra', 'omegaconf')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_command_line_can_import_it_for_nothing():
    code = "import sys; from cassava_kit.training.ssl import config, methods, pretrain, recipes; "
    code += "print([name for name in ('torch', 'lightning', 'lightly', 'timm', 'sklearn') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
