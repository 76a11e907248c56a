"""Certified federated training on Flower."""
