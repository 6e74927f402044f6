"""From a run to an artifact, and from an artifact to predictions."""
