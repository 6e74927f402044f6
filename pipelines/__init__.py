"""Raw logs in; prepared rows, training tensors and the feature spec out."""
