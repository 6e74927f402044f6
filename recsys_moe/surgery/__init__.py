"""Changes to a trained model that keep what it has learnt: experts, tasks and domains added."""
