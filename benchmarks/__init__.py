"""Speed and memory as ratios measured within one run; `make bench`."""
