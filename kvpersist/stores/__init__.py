"""Storage engines: one protocol, one module per engine."""
