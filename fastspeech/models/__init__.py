"""Model definitions, one package a model."""
