# ruff: noqa: E501 - one cell a line
"""The known failures of public notebooks, one at a time: which cell, which line, and no finding in the mended one."""

from __future__ import annotations

from pathlib import Path

import pytest
from foreign_notebooks import METADATA, examine_cells, of_rule, places, write_notebook

from cassava_kit.kaggle.examine.cells import plain_python
from cassava_kit.kaggle.examine.graphs import COMPILED
from cassava_kit.kaggle.examine.internet import DOWNLOAD, INSTALL, PRETRAINED
from cassava_kit.kaggle.examine.network import LOAD, SINGLE
from cassava_kit.kaggle.examine.notebook import examine_notebook
from cassava_kit.kaggle.examine.paths import FIXED
from cassava_kit.kaggle.examine.rows import LATE, ROWS
from cassava_kit.kaggle.examine.secrets import SECRET
from cassava_kit.kaggle.examine.settings_file import SETTINGS_RULE
from cassava_kit.kaggle.examine.sizes import SIZE, fixed_size

HEX = "0123456789abcdef" * 3
FAILURES = [
    # rule, cells, places of the findings
    (INSTALL, ["#md # title", "import os\n\n!pip install -q timm==0.4.12\nx = 1"], [(2, 3)]),
    (INSTALL, ["%pip install ttach"], [(1, 1)]),
    (INSTALL, ["!pip install -r requirements.txt"], [(1, 1)]),
    (INSTALL, ["%%bash\n# tools\npip install \\\n    cleanlab\nls"], [(1, 3)]),
    (INSTALL, ["import sys\n!{sys.executable} -m pip install git+https://github.com/a/b"], [(1, 2)]),
    (INSTALL, ["import os\nos.system('pip install ttach')"], [(1, 2)]),
    (INSTALL, ["import subprocess as sp\nsp.run(['pip', 'install', 'ttach'])"], [(1, 2)]),
    (INSTALL, ["get_ipython().system('pip install ttach')"], [(1, 1)]),
    (INSTALL, ["from IPython import get_ipython as g\ng().system('pip install ttach')"], [(1, 2)]),
    (INSTALL, ["!apt-get install -y libturbojpeg && conda install faiss"], [(1, 1), (1, 1)]),
    (INSTALL, ["NAME = 'ttach'\n!pip install {NAME}"], [(1, 2)]),
    (INSTALL, ["if True:\n    !pip install ttach \\\n        cleanlab\nimport os"], [(1, 2)]),
    (DOWNLOAD, ["!wget https://x.org/a.pth"], [(1, 1)]),
    (DOWNLOAD, ["%%sh\ncurl -O https://x.org/a.pth"], [(1, 2)]),
    (DOWNLOAD, ["!git clone https://github.com/a/b"], [(1, 1)]),
    (DOWNLOAD, ["from urllib.request import urlretrieve as get\nURL = 'https://x.org/a'\nget(URL, 'a')"], [(1, 3)]),
    (DOWNLOAD, ["import torch\n\nm = torch.hub.load('facebookresearch/dino:main', 'dino_vits16')"], [(1, 3)]),
    (DOWNLOAD, ["import gdown\ngdown.download(id='1')"], [(1, 2)]),
    (DOWNLOAD, ["from huggingface_hub import hf_hub_download\nhf_hub_download('a/b', 'c')"], [(1, 2)]),
    (PRETRAINED, ["import timm\nm = timm.create_model('resnet50', pretrained=True)"], [(1, 2)]),
    (PRETRAINED, ["import timm as t\nmake = t.create_model\nm = make('resnet50', True)"], [(1, 3)]),
    (
        PRETRAINED,
        ["from timm import create_model as cm\ncm('hf_hub:timm/vit_base_patch16_224', pretrained=False)"],
        [(1, 2)],
    ),
    (
        PRETRAINED,
        ["class CFG:\n    pre = True", "import timm\nm = timm.create_model('a', pretrained=CFG.pre)"],
        [(1, 2)],
    ),
    (
        PRETRAINED,
        [
            "import timm\nimport torch.nn as nn\nclass Net(nn.Module):\n    def __init__(self, name, pretrained=False):\n"
            "        super().__init__()\n        self.m = timm.create_model(name, pretrained=pretrained)",
            "a = Net('resnet50')\nb = Net('resnet50', pretrained=True)",
        ],
        [(2, 2)],
    ),
    (
        PRETRAINED,
        ["from torchvision import models\nm = models.resnet50(weights=models.ResNet50_Weights.DEFAULT)"],
        [(1, 2)],
    ),
    (PRETRAINED, ["import torchvision\nm = torchvision.models.resnet18(weights='IMAGENET1K_V1')"], [(1, 2)]),
    (PRETRAINED, ["from transformers import AutoModel\nm = AutoModel.from_pretrained('google/vit-base')"], [(1, 2)]),
    (PRETRAINED, ["import tensorflow as tf\nm = tf.keras.applications.EfficientNetB0(include_top=False)"], [(1, 2)]),
    (PRETRAINED, ["from tensorflow.keras.applications import Xception\nm = Xception(weights='imagenet')"], [(1, 2)]),
    (PRETRAINED, ["import segmentation_models_pytorch as smp\nm = smp.Unet('resnet34')"], [(1, 2)]),
    (FIXED, [f"import pandas as pd\ndf = pd.read_csv('/kaggle/input/{SLUG}/train.csv')" for SLUG in ("c",)], [(1, 2)]),
    (FIXED, ["DIR = '../input/my-weights'\nPATH = DIR + '/a.pth'"], [(1, 1)]),
    (FIXED, ["from pathlib import Path\nROOT = Path('/kaggle/input')\nW = ROOT / 'my-weights' / 'a.pth'"], [(1, 3)]),
    (FIXED, ["import os\nNAME = 'my-weights'\nw = os.path.join('../input', NAME, 'a.pth')"], [(1, 3)]),
    (FIXED, ["N = 'my-weights'\nw = f'/kaggle/input/{N}/a_{x}.pth'"], [(1, 2)]),
    (FIXED, ["w = '/kaggle/input/competitions/cassava-leaf-disease-classification/train.csv'"], [(1, 1)]),
    (FIXED, ["!cp -r ../input/my-weights/code ."], [(1, 1)]),
    (
        ROWS,
        [
            "import pandas as pd\n\nsub = pd.read_csv('a/sample_submission.csv')\nsub['label'] = 3\nsub.to_csv('submission.csv')"
        ],
        [(1, 3)],
    ),
    (
        ROWS,
        [
            "from pandas import read_csv\nids = read_csv('sample_submission.csv').image_id.values",
            "make(ids).to_csv('submission.csv')",
        ],
        [(1, 2)],
    ),
    (
        ROWS,
        [
            "import pandas as pd\ndf = pd.DataFrame({'image_id': ['2216849948.jpg'], 'label': [4]})\ndf.to_csv('submission.csv')"
        ],
        [(1, 2)],
    ),
    (
        ROWS,
        [
            "import numpy as np\nimport pandas as pd\nN = 15000\np = np.zeros((N, 5))",
            "df = pd.DataFrame({'label': p.argmax(1)})\ndf.to_csv('submission.csv', index=False)",
        ],
        [(1, 4)],
    ),
    (
        ROWS,
        [
            "import os\nimport pandas as pd\nids = os.listdir('x/test_images')[:100]\n"
            "pd.DataFrame({'image_id': ids}).to_csv('submission.csv', index=False)"
        ],
        [(1, 3)],
    ),
    (LOAD, ["import torch\n\nstate = torch.load('a.pth')['model']"], [(1, 3)]),
    (LOAD, ["from torch import load as l\nstate = l('a.pth', map_location='cpu')"], [(1, 2)]),
    (
        COMPILED,
        [
            "import torch\nm = torch.compile(net, mode='reduce-overhead')",
            "out = []\nfor x in loader:\n    out.append(m(x))",
        ],
        [(2, 3)],
    ),
    (
        COMPILED,
        ["import torch\nm = torch.compile(net, mode='max-autotune')\ny = [m(x) for x in loader]"],
        [(1, 3)],
    ),
    (
        COMPILED,
        [
            "import torch\nm = torch.compile(net, mode='reduce-overhead')\nfor x in loader:\n    a = m(x)\n"
            "    b = m(x.flip(3))\n    y = (a + b) / 2"
        ],
        [(1, 6)],
    ),
    (
        COMPILED,
        [
            "import torch\nm = torch.compile(net, options={'triton.cudagraphs': True})\nkept = []\nfor x in loader:\n"
            "    y = m(x)\n    y = y.detach()\n    kept.append(y)"
        ],
        [(1, 7)],
    ),
    (
        SINGLE,
        [
            "import timm\nmodel = timm.create_model('a')\nfor path in paths:\n    x = read(path)\n    y = model(x.unsqueeze(0))"
        ],
        [(1, 5)],
    ),
    (
        SINGLE,
        [
            "import numpy as np\nfrom tensorflow.keras.models import load_model\nmodel = load_model('a.h5')\n"
            "def one(path):\n    x = np.expand_dims(read(path), axis=0)\n    return model.predict(x)",
            "df['label'] = df.image_id.apply(one)",
        ],
        [(1, 6)],
    ),
    (SINGLE, ["from torch.utils.data import DataLoader\nloader = DataLoader(test, batch_size=1)"], [(1, 2)]),
    (
        LATE,
        [
            "import timm\nmodel = timm.create_model('a')\ny = [model(x).argmax(1) for x in loader]",
            "#md write",
            "import pandas as pd\nsub = pd.DataFrame({'image_id': ids, 'label': y})\nsub.to_csv('submission.csv', index=False)",
        ],
        [(3, 3)],
    ),
    (
        SIZE,
        [
            "import timm\nm = timm.create_model('vit_base_patch16_384')",
            "import albumentations as A\nt = A.Compose([A.Resize(224, 224), A.Normalize()])",
        ],
        [(2, 2)],
    ),
    (
        SIZE,
        [
            "import torch\nfrom torchvision import transforms as T\nt = T.Compose([T.Resize((256, 256)), T.ToTensor()])",
            "state = torch.load('w/tf_efficientnet_b4_512.pth', weights_only=True)",
        ],
        [(1, 3)],
    ),
    (SECRET, [f"import wandb\nwandb.login(key='{HEX[:40]}')"], [(1, 2)]),
    (SECRET, ["#md key: hf_" + "aB3" * 10], [(1, 1)]),
    (SECRET, ["import os\nos.environ['KAGGLE_KEY'] = '" + HEX[:32] + "'"], [(1, 2)]),
    (SECRET, ["password = 'correct7horse'"], [(1, 1)]),
    ("syntax", ["x = 1", "print 'old'"], [(2, 1)]),
]


@pytest.mark.parametrize(("rule", "cells", "expected"), FAILURES)
def test_a_failure_is_found_at_its_cell_and_line(
    tmp_path: Path, rule: str, cells: list[str], expected: list[tuple[int, int]]
) -> None:
    assert sorted({*places(examine_cells(tmp_path, *cells), rule)}) == sorted({*expected})


HARMLESS = [
    [
        "import timm\ndef make(pretrained=True):\n    return timm.create_model('a', pretrained=pretrained)",
        "make(False)",
    ],
    ["import os\nif os.path.exists('/kaggle/input/a'):\n    w = '/kaggle/input/a/b.pth'"],
    [
        "!pip install --no-index --find-links /tmp/wheels ttach",
        "!pip install ./a.whl",
        "!pip uninstall -y x",
        "!pip list",
    ],
    ["# !pip install ttach\nprint('pip install ttach')\ntext = 'wget https://x.org'"],
    ["import timm\nm = timm.create_model('resnet50', pretrained=False)\nnames = timm.list_models(pretrained=True)"],
    ["class CFG:\n    train = False", "import timm\nif CFG.train:\n    m = timm.create_model('a', pretrained=True)"],
    ["from transformers import AutoModel\nm = AutoModel.from_pretrained('./local')\nAutoModel.from_pretrained(found)"],
    ["import tensorflow as tf\nm = tf.keras.applications.EfficientNetB0(weights=None)"],
    ["from pathlib import Path\nw = next(Path('/kaggle/input').rglob('a.pth'))\nprint('/kaggle/input/a/b')"],
    [
        "import os\nfor d in ['/kaggle/input/a', '/kaggle/input/datasets/me/a']:\n    if os.path.exists(d):\n        root = d"
    ],
    ["import pandas as pd\nsub = pd.read_csv('sample_submission.csv')\nsub.head()\nprint(sub.shape, len(sub))"],
    ["import torch\ns = torch.load('a.pth', weights_only=True)\nimport json\nj = json.load(f)"],
    ["import torch\nm = torch.compile(net)\ny = [m(x) for x in loader]"],
    ["import torch\nm = torch.compile(net, mode='reduce-overhead')\ny = [m(x).softmax(1).cpu() for x in loader]"],
    [
        "import torch\nm = torch.compile(net, mode='reduce-overhead')\nfor x in l:\n    y = m(x).clone()\n    out.append(y)"
    ],
    ["import timm\nmodel = timm.create_model('a')\ny = model(image.unsqueeze(0))"],
    ["from torch.utils.data import DataLoader as D\ntrain_loader = D(train_set)\nl = D(test, batch_size=32)"],
    [
        "import timm\nm = timm.create_model('efficientnet_b4')\nimport albumentations as A\nt = A.Compose([A.Resize(512, 512)])"
    ],
    [
        "import timm\nm = timm.create_model('vit_base_patch16_224', img_size=384)",
        "import albumentations as A\nA.Resize(384, 384)",
    ],
    ["import pandas as pd\ndf.to_csv('submission.csv')", "import timm\nmodel = timm.create_model('a')\ny = model(x)"],
    [
        "key = 'image_id'\ntokenizer_path = 'bert-base-uncased-2020'\nmd5 = '"
        + HEX[:32]
        + "'\nAPI_KEY = 'your-key-here'"
    ],
    ["%load_ext autoreload\n%matplotlib inline\n!nvidia-smi\ndf?\n%%time"],
]


@pytest.mark.parametrize("cells", HARMLESS)
def test_what_works_is_not_found(tmp_path: Path, cells: list[str]) -> None:
    found = examine_cells(tmp_path, *cells)
    assert [f"{each}" for each in found.findings if not each.note] == []


def test_a_function_that_nothing_calls_is_noted_and_ends_nothing(tmp_path: Path) -> None:
    cells = [
        "import timm\ndef old():\n    return timm.create_model('a', pretrained=True)",
        "!pip install albumentations",
    ]
    found = examine_cells(tmp_path, *cells)
    assert found.ok and [(each.cell, each.line) for each in found.findings] == [(1, 3), (2, 1)]
    assert "nothing calls" in str(found.findings[0]) and "the image has it" in str(found.findings[1])
    used = examine_cells(tmp_path, *cells, "model = old()")
    assert not used.ok and places(used, PRETRAINED) == [(1, 3)]


def test_an_installed_version_is_left_and_another_is_fetched(tmp_path: Path) -> None:
    for line, ends in (("albumentations>=2", False), ("albumentations==1.3.1", True), ("-U albumentations", True)):
        assert bool(places(examine_cells(tmp_path, f"!pip install {line}"), INSTALL)) is ends, line


def test_a_sample_submission_is_noted_where_nothing_is_submitted(tmp_path: Path) -> None:
    found = examine_cells(tmp_path, "import pandas as pd\nt = pd.read_csv('sample_submission.csv')\nt['path'] = 1")
    assert found.ok and [(each.line, each.note) for each in found.findings] == [(2, "no cell writes submission.csv")]


def test_weights_in_a_librarys_cache_are_noted(tmp_path: Path) -> None:
    cells = ["!mkdir -p ~/.cache/torch/hub/checkpoints", "import timm\nm = timm.create_model('a', pretrained=True)"]
    assert not places(examine_cells(tmp_path, *cells), PRETRAINED) and of_rule(
        examine_cells(tmp_path, *cells), PRETRAINED
    )


def test_lines_do_not_move_by_magics() -> None:
    source = "%time a = 1\n!ls \\\n  -l \\\n  x\nb = !ls\nc?\ntext = '''\n!pip install x\n%y\n'''\nd = 1\n"
    made = plain_python(source).splitlines()
    assert len(made) == len(source.splitlines()) and made[10] == "d = 1" and made[7] == "!pip install x"


CHANGES = [
    ({"enable_internet": True}, "enable_internet is true"),
    ({"enable_internet": "true"}, "enable_internet is true"),
    ({"enable_internet": None}, "enable_internet is missing"),
    ({"machine_shape": "NvidiaTeslaP100"}, "P100 is retired"),
    ({"machine_shape": None}, "machine_shape is missing"),
    ({"competition_sources": []}, "names no competition"),
    ({"code_file": "other.ipynb"}, "code_file is 'other.ipynb'"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_metadata_is_found_at_its_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    metadata = {key: value for key, value in (METADATA | change).items() if value is not None}
    (found,) = of_rule(examine_cells(tmp_path, "x = 1", metadata=metadata), SETTINGS_RULE)
    assert message in found.message and found.cell == 0
    (key,) = change
    lines = (tmp_path / "given-metadata.json").read_text().splitlines()
    written = [number for number, line in enumerate(lines, start=1) if f'"{key}"' in line]
    if written:
        assert found.line in written


def test_internet_is_no_failure_where_there_is_no_competition(tmp_path: Path) -> None:
    metadata = METADATA | {"enable_internet": True, "competition_sources": []}
    found = examine_cells(tmp_path, "!pip install ttach", metadata=metadata)
    assert not of_rule(found, INSTALL)
    attached = examine_cells(tmp_path, "!pip install ttach", metadata=METADATA | {"enable_internet": True})
    assert places(attached, INSTALL) == [(1, 1)], "a submission's notebook has none, whatever the switch"


def test_a_folder_that_no_source_attaches(tmp_path: Path) -> None:
    cells = ["a = '../input/my-weights/a.pth'\nb = '../input/my-other-weights/b.pth'"]
    found = of_rule(examine_cells(tmp_path, *cells), f"{FIXED}: not attached")
    assert [(each.line, "my-other-weights" in each.message) for each in found] == [(2, True)]


def test_a_notebook_above_a_megabyte(tmp_path: Path) -> None:
    (found,) = of_rule(examine_cells(tmp_path, "x = '" + "a" * 1_000_000 + "'"), SETTINGS_RULE)
    assert "Kaggle takes 1,000,000" in found.message


def test_what_kaggle_keeps_in_the_notebook_is_read(tmp_path: Path) -> None:
    kaggle = {"isInternetEnabled": True, "accelerator": "nvidiaTeslaP100", "dataSources": []}
    path = write_notebook(
        tmp_path, "import pandas as pd\npd.DataFrame().to_csv('submission.csv')", metadata={"kaggle": kaggle}
    )
    said = [each.message for each in examine_notebook(path, root=Path(__file__).parents[3]).findings]
    assert [any(word in each for each in said) for word in ("isInternetEnabled is true", "P100", "dataSources")] == [
        True
    ] * 3


def test_a_secret_is_named_and_not_shown(tmp_path: Path) -> None:
    found = examine_cells(tmp_path, f"import wandb\nwandb.login(key='{HEX[:40]}')")
    assert HEX[:10] not in str(found) and HEX[:10] not in str(found.values())


def test_a_script_is_read_as_cells_with_the_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(
        "# %% [markdown]\n# title\n# %%\nimport torch\n\n# %%\nx = torch.load('a')\nget_ipython().system('pip install z')\n"
    )
    found = examine_notebook(path, root=Path(__file__).parents[3])
    assert (places(found, LOAD), places(found, INSTALL)) == ([(3, 7)], [(3, 8)])
    path.write_text("import torch\n\nx = torch.load('a')\n")
    assert places(examine_notebook(path, root=Path(__file__).parents[3]), LOAD) == [(1, 3)]


def test_sizes_of_networks_are_timms() -> None:
    import timm

    assert (
        fixed_size("vit_small_patch16_384") == 384 and fixed_size("resnet50") is None and fixed_size("nothing") is None
    )
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2)
    assert model.patch_embed.img_size[0] == fixed_size("vit_tiny_patch16_224")


def test_the_kits_own_notebooks_are_clean() -> None:
    root = Path(__file__).parents[3]
    notebooks = sorted((root / "kernels").glob("*/*.ipynb"))
    assert len(notebooks) == 5
    for path in notebooks:
        found = examine_notebook(path, root=root)
        assert not found.findings and not found.skipped, str(found)
