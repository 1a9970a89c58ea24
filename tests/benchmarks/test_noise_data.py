import numpy as np
import pytest
from noise_data import CLUSTER_ROWS, K, plant_in_clusters
from sklearn.cluster import KMeans


@pytest.mark.parametrize("rate", [0.0, 0.09, 0.18])
def test_clustered_errors_take_whole_classes_of_a_cluster_to_the_neighbouring_class(rate):
    rng = np.random.default_rng(0)
    true = rng.integers(0, K, 900)
    x = 3 * np.eye(K)[true] + rng.normal(size=(900, K))
    given = plant_in_clusters(true, rate, x, seed=4)
    assert rate - CLUSTER_ROWS / 900 <= (given != true).mean() <= rate
    clusters = KMeans(900 // CLUSTER_ROWS, n_init=1, random_state=4).fit_predict(x)
    for cluster, label in {*zip(clusters, true, strict=True)}:
        rows = (clusters == cluster) & (true == label)
        assert len(set(given[rows])) == 1, "alike on what looks alike"
        if given[rows][0] != label:
            others = [k for k in range(K) if k != label]
            far = [np.linalg.norm(x[true == k].mean(axis=0) - x[rows].mean(axis=0)) for k in others]
            assert given[rows][0] == others[int(np.argmin(far))]
