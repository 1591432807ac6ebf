"""Events: what the loop does between two dispatches. One module for each; `event.py` has their protocol."""
