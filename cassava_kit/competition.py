"""All that is true of one competition alone; everything else in the kit asks here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Competition:
    """What a competition calls its things: slug, classes, columns, files and folders, image size (width, height).

    `class_shares` are the training labels', if known: the answer to an image of which nothing else is known.
    """

    slug: str
    title: str
    classes: tuple[str, ...]
    class_shares: tuple[float, ...] = ()
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
    def majority(self) -> int:
        """The most frequent class; class 0 where the shares are not known."""
        return max(range(self.n_classes), key=self.class_shares.__getitem__) if self.class_shares else 0

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
    class_shares=(1087 / 21397, 2189 / 21397, 2386 / 21397, 13158 / 21397, 2577 / 21397),
)
