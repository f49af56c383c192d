"""Speed and memory of the losses against what people use today: `python -m benchmarks --help`."""
