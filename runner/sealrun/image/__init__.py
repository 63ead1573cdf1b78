"""Base, environment layer, tree layer, and how the image made of them gets into an engine."""
