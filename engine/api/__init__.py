"""The verbs as functions: train, evaluate, predict, follow, export, explain and compile; and saved runs."""
