"""Pages and pictures: data, runs, doubtful labels, contact sheets."""
