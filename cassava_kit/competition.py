"""All that is true of one competition alone; everything else in the kit asks here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Competition:
    """What a competition calls its things: slug, classes, columns, files and folders, image size (width, height)."""

    slug: str
    title: str
    classes: tuple[str, ...]
    id_column: str = "image_id"
    label_column: str = "label"
    image_suffix: str = ".jpg"
    image_size: tuple[int, int] = (800, 600)
    train_csv: str = "train.csv"
    train_images: str = "train_images"
    test_images: str = "test_images"
    sample_submission: str = "sample_submission.csv"
    label_map: str = "label_num_to_disease_map.json"
    train_tfrecords: str = "train_tfrecords"

    @property
    def n_classes(self) -> int:
        """Number of classes K; labels are 0..K-1."""
        return len(self.classes)


CASSAVA = Competition(
    slug="cassava-leaf-disease-classification",
    title="Cassava Leaf Disease Classification",
    classes=(
        "Cassava Bacterial Blight (CBB)",
        "Cassava Brown Streak Disease (CBSD)",
        "Cassava Green Mottle (CGM)",
        "Cassava Mosaic Disease (CMD)",
        "Healthy",
    ),
)
