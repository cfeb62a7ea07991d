"""What `make bench` runs: times as ratios, in one process, against a reference on the same input."""
