"""The instrumented model: structure, attention tap, sequence tracker, token removal, state."""
