"""Token distillation: rows of new tokens learned from the original model, which reads the same text in old tokens."""
