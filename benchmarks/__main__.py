"""Rooms, each run by itself with `--help` for its options:

python -m benchmarks.speed           speed, memory and generator calls
python -m benchmarks.two_dimensions  do more steps help, which settings; points in the plane
python -m benchmarks.video           the paper's ablations on autoregressive video
python -m benchmarks.video.decide    Salt against DMD on it, over many seeds
python -m benchmarks.health          what a run that goes well looks like, and runs that do not
"""

if __name__ == "__main__":
    print(__doc__.strip())
