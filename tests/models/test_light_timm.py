"""timm imported without torch's compiler: nothing is lost, it comes when it is asked for."""

import subprocess
import sys

CODE = """
import sys, torch
from cassava_kit.models.network import create_model
model = create_model("test_efficientnet", 3).eval()
with torch.inference_mode():
    model(torch.zeros(1, 3, 32, 32))
assert "torch._dynamo" not in sys.modules, "torch's compiler was imported"
import timm.layers.typing, torchvision
from timm.models.naflexvit import batch_patchify
assert torch.compiler.disable.__module__ == "torch.compiler"
assert type(torchvision.models.resnet18(num_classes=3)).__module__ == "torchvision.models.resnet"
boxes, scores = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]]), torch.tensor([0.5, 0.9, 0.3])
assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
assert {"resnet18", "detection"} <= set(dir(torchvision.models))
from cassava_kit.models.light_timm import _disable_late
def double(x): return 2 * x
late = _disable_late(double)
assert "torch._dynamo" in sys.modules  # torchvision's operators need it
assert late(4) == 8 and late.__name__ == "double"
print("done")
"""


def test_timm_comes_without_torchs_compiler_which_is_there_when_asked_for():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr
