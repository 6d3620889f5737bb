"""The parts of train_voice_commands.py: clips, synthetic voices, mixing, the model, training and measuring."""
