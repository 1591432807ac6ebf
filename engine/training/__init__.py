"""The Task protocol, the optimizer, the train state and the pure steps that the trainer compiles."""
