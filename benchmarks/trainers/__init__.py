"""The real trainers of Self Forcing's family where they lie: for the tests and for real_size."""
