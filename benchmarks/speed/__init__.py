"""Speed and memory against what people use today, and what an iteration costs."""
