"""The parts of a run that every trainer needs; terms, adapters and integrations build on it."""
