"""From a finished model folder to the programs that run it: who takes it as it is, its card, the hub."""
