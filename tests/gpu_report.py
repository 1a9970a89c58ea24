"""A file of gpu-check made by hand: `write_gpu_file`, for a card that is `factor` times as fast as a T4 is assumed."""

from pathlib import Path

from cassava_kit.training.cost import T4, pass_seconds
from cassava_kit.training.gpu_check.findings import GpuReport, PartResult, StepSpeed, write_gpu_report

STEPS = (("resnet50", 224), ("efficientnet_b4", 512), ("vit_base_patch16_224", 224))


def gpu_report(device: str = "Tesla T4", *, factor: float = 1.0, **changes: object) -> GpuReport:
    """Training steps of three networks, two of which have no depthwise convolutions, and one in single precision."""
    speeds = [
        StepSpeed(
            model=model,
            model_args={},
            image_size=size,
            precision="16-mixed",
            images_per_second=factor / (3 * pass_seconds(model, size)),  # a pass back costs two forward
        )
        for model, size in STEPS
    ]
    single = speeds[0].images_per_second / T4.single_precision
    speeds.append(speeds[0].model_copy(update={"precision": "32-true", "images_per_second": single}))
    part = PartResult(name="training", status="passed", seconds=60.0, speeds=tuple(speeds))
    facts: dict[str, object] = {"device": device, "n_devices": 2, "stand_in": False, "memory_gb": 15.8, "cores": 4}
    facts |= {"versions": {}, "minutes": 7.0, "seconds": 300.0, "finished": True, "parts": (part,)}
    return GpuReport(**(facts | changes))  # type: ignore[arg-type]


def write_gpu_file(path: Path, device: str = "Tesla T4", *, factor: float = 1.0, **changes: object) -> Path:
    """Write it and return the path."""
    write_gpu_report(path, gpu_report(device, factor=factor, **changes))
    return path
