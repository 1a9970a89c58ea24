import cv2
import numpy as np
import pytest
import torch

from cassava_kit.data.images import load_image
from cassava_kit.inference.features import backbone_embedding, read_embedding
from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint
from cassava_kit.models.network import create_model

IDS = np.array([f"{i}.jpg" for i in range(20)])
VECTORS = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)


def write_embedding(path, image_ids, vectors):
    np.savez(path, image_id=image_ids, embedding=vectors)


def test_vectors_are_joined_by_id_from_both_kinds_of_file(tmp_path):
    order = np.random.default_rng(1).permutation(20)
    write_embedding(tmp_path / "e.npz", IDS[order], VECTORS[order])
    assert np.array_equal(read_embedding(tmp_path / "e.npz", IDS), VECTORS)
    assert np.array_equal(read_embedding(tmp_path / "e.npz", IDS[5:8]), VECTORS[5:8])
    lines = [
        "f0,image_id,f1,f2,f3",
        *(f"{v[0]},{name},{v[1]},{v[2]},{v[3]}" for name, v in zip(IDS, VECTORS, strict=True)),
    ]
    (tmp_path / "e.csv").write_text("\n".join([lines[0], *(lines[1:][i] for i in order)]))
    assert np.allclose(read_embedding(tmp_path / "e.csv", IDS), VECTORS, atol=1e-6)


def test_broken_embeddings_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no embedding"):
        read_embedding(tmp_path / "none.npz", IDS)
    write_embedding(tmp_path / "short.npz", IDS[1:], VECTORS[1:])
    with pytest.raises(ValueError, match=r"no vector for 0.jpg"):
        read_embedding(tmp_path / "short.npz", IDS)
    write_embedding(tmp_path / "twice.npz", IDS[[0, 0, *range(1, 20)]], VECTORS[[0, 0, *range(1, 20)]])
    with pytest.raises(ValueError, match=r"names 0.jpg more than once"):
        read_embedding(tmp_path / "twice.npz", IDS)
    write_embedding(tmp_path / "nan.npz", IDS, np.where(np.arange(20)[:, None] == 3, np.nan, VECTORS))
    with pytest.raises(ValueError, match=r"not finite for 3.jpg"):
        read_embedding(tmp_path / "nan.npz", IDS)
    write_embedding(tmp_path / "flat.npz", IDS, VECTORS[:, 0])
    with pytest.raises(ValueError, match="one vector an image"):
        read_embedding(tmp_path / "flat.npz", IDS)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"must be an .npz file"):
        read_embedding(tmp_path / "bad.npz", IDS)
    np.save(tmp_path / "array.npy", VECTORS)
    write_embedding(tmp_path / "cut.npz", IDS, VECTORS)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:200])
    write_embedding(tmp_path / "spoilt.npz", IDS, VECTORS)
    content = bytearray((tmp_path / "spoilt.npz").read_bytes())
    content[200] ^= 255
    (tmp_path / "spoilt.npz").write_bytes(content)
    for name in ("array.npy", "cut.npz", "spoilt.npz"):
        with pytest.raises(ValueError, match=rf"{name} must be an .npz file with the arrays image_id and embedding"):
            read_embedding(tmp_path / name, IDS)
    (tmp_path / "words.csv").write_text("image_id,f0\n0.jpg,many\n")
    with pytest.raises(ValueError, match="only numbers beside it"):
        read_embedding(tmp_path / "words.csv", IDS)
    (tmp_path / "noid.csv").write_text("name,f0\n0.jpg,1\n")
    with pytest.raises(ValueError, match="must have the column image_id"):
        read_embedding(tmp_path / "noid.csv", IDS)


@pytest.mark.parametrize("n_classes", [0, 5])
def test_a_checkpoint_s_features_are_the_embedding(tmp_path, n_classes):
    """With and without a head the features are those of the bare backbone; an unreadable image lies in the middle."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.jpg" for i in range(4)]
    for path in paths:
        cv2.imwrite(str(path), rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    paths[2].write_bytes(b"\xff\xd8 broken")
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}
    torch.manual_seed(0)
    model = create_model("resnet18", n_classes, model_args=arguments)
    info = CheckpointInfo(
        model="resnet18",
        model_args=arguments,
        n_classes=n_classes,
        input_size=(32, 32),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.2),
        recipe="tiny",
    )
    save_checkpoint(tmp_path / "b.safetensors", model.state_dict(), info)
    found = backbone_embedding(tmp_path / "b.safetensors", paths, cache=tmp_path / "cache")
    pixels = torch.from_numpy(load_image(paths[0], (32, 32))).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.mean, info.std))
    with torch.no_grad():
        expected = model.eval().forward_features((pixels - mean) / std).mean(dim=(2, 3))[0].numpy()
    assert found.shape == (4, 16) and np.allclose(found[0], expected, atol=1e-4)
    assert np.allclose(found[2], found[[0, 1, 3]].mean(axis=0), atol=1e-6)
    assert list((tmp_path / "cache").iterdir())
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="none of the images can be read"):
        backbone_embedding(tmp_path / "b.safetensors", paths)
