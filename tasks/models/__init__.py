"""What knows weights: checkpoints, lowering to the native engine's graph, the golden set."""
