"""The paper's ablations on autoregressive video, in miniature; `python -m benchmarks.video`."""
