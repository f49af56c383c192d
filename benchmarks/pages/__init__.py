"""Pages of `salt-losses report`, from runs of the miniature (docs/report.md)."""
