"""Other libraries' models and our ops: `transformers` accelerates models of transformers, or shares their weights."""
