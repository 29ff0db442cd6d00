"""How much of the answers a selection keeps: accuracy on rendered scenes, and three studies of fidelity."""
